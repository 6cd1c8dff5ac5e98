"""The command line: exit codes, sentences, files."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY

import lirank_ext
from lirank_ext import _table, verify
from lirank_ext._progress import Progress
from lirank_ext.benchmarks import harness
from lirank_ext.cli import cores, main
from lirank_ext.cli.overview import COMMANDS
from lirank_ext.errors import UserError
from lirank_ext.library import build_info, gpu, packages
from lirank_ext.library.op import OPS
from lirank_ext.verify import compare

OP = "isotonic_calibration"
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_info_prints_build_info(capsys, tmp_path):
    assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
    printed = capsys.readouterr().out
    info = lirank_ext.build_info()
    assert all(key in printed and value in printed for key, value in info.items())
    found = json.loads((tmp_path / "info.json").read_text())
    assert found == info | {"gpu_ops": build_info.gpu_ops()}
    assert set(found["gpu_ops"]) == set(verify.public_ops())
    assert all(op in printed and by in printed for op, by in found["gpu_ops"].items())


def test_info_says_what_serves_a_gpu_with_this_installation(monkeypatch, tmp_path):
    def on_gpu(library: bool, triton: bool, gradients: bool = True) -> dict[str, str]:
        built = tmp_path / "liblirank_cuda.so"
        names = [n for n in OPS if n.startswith("hashed_embedding_bag")]
        names = [n for n in names if gradients or "backward" not in n]
        text = "\0".join(["", "lirank_ext was built for CUDA architectures 80 90", *names, ""])
        built.write_text(text)
        monkeypatch.setattr(build_info, "CUDA_LIBRARY", built if library else tmp_path / "none.so")
        monkeypatch.setattr(gpu, "has_triton", lambda: triton)
        return build_info.gpu_ops()

    monkeypatch.setattr(torch.version, "cuda", None)
    both = on_gpu(True, True)
    assert "built for sm_80, sm_90" in lirank_ext.build_info()["cuda"]
    assert both["hashed_embedding_bag"] == "CUDA kernel" and both[OP] == "Triton kernel"
    without = on_gpu(False, False)
    assert set(without.values()) == {
        "plain PyTorch, slower: a kernel needs Triton, or nvcc when the package is installed"
    }
    assert "not built" in lirank_ext.build_info()["cuda"]
    assert on_gpu(False, True)["hashed_embedding_bag"] == "Triton kernel"
    missing = "CUDA kernel; gradients: plain PyTorch, slower: a kernel needs Triton"
    assert on_gpu(True, False, gradients=False)["hashed_embedding_bag"] == missing


def test_verify_prints_a_row_per_op_and_backend(capsys, tmp_path):
    assert main(["verify", "--op", OP, "--json", str(tmp_path / "v.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "v.json").read_text())
    assert [row["backend"] for row in found["rows"]][:2] == ["reference", "cpu"]
    assert printed.count(OP) == len(found["rows"]) and found["summary"] in printed
    assert found["passed"] and found["build"] == lirank_ext.build_info()
    for row in found["rows"]:
        assert row["passed"] or row["absent"] in printed
    ran = [row for row in found["rows"] if not row["absent"]]
    assert all(row["cases"] > 20 and 0 < row["error"] <= row["allowed"] for row in ran)


def test_verify_of_one_device_has_no_rows_of_the_other(tmp_path):
    assert main(["verify", "--op", OP, "--device", "cpu", "--json", str(tmp_path / "v.json")]) == 0
    rows = json.loads((tmp_path / "v.json").read_text())["rows"]
    assert [(r["backend"], r["device"]) for r in rows] == [("reference", "cpu"), ("cpu", "cpu")]


def test_verify_exits_1_on_a_failure(capsys, monkeypatch):
    real = verify.check_case

    def one_off(case, implementation, device="cpu"):
        outcome = real(case, implementation, device)
        outcome.problem = "off by one" if case.label.startswith("strided") else outcome.problem
        return outcome

    monkeypatch.setattr(compare, "check_case", one_off)
    assert main(["verify", "--op", OP]) == 1
    assert "strided: off by one" in capsys.readouterr().out


def test_verify_names_the_reason_of_an_absent_library():
    code = "import sys; from lirank_ext.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "--op", OP],
        env={**os.environ, "LIRANK_NO_EXT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "absent: LIRANK_NO_EXT is set" in done.stdout


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_unknown_op_names_the_known_ones(command, capsys):
    assert main([command, "--op", "no_such_op"]) == 2
    said = capsys.readouterr().err
    assert "'no_such_op'" in said and OP in said and len(said.splitlines()) == 1


@needs_no_gpu
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_cuda_without_a_gpu_is_one_sentence(command, capsys):
    assert main([command, "--device", "cuda"]) == 2
    out, said = capsys.readouterr()
    assert not out and len(said.splitlines()) == 1 and "no CUDA device" in said


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"], ["train"]])
def test_help_does_not_wait_for_torch(argv):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lirank_ext", *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "lirank_ext.cli" in imported
    assert not imported & {"torch", "numpy"}


def test_a_command_has_the_whole_package():
    """The names of the package come when they are asked for."""
    code = (
        "import sys; sys.argv = ['/bin/lirank-ext']; import lirank_ext; "
        "assert 'torch' not in sys.modules; from lirank_ext import low_rank_cross, swap; "
        "import lirank_ext._api as api; assert swap is api.swap; "
        "assert all(hasattr(lirank_ext, name) for name in api.__all__); "
        "assert not hasattr(lirank_ext, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _takes_ctrl_c() -> None:
    """As a command at a terminal does; a shell's job in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_the_package_is_imported_is_quiet(tmp_path):
    """As torch is: a module that takes long, in its place."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    process = command(
        "info",
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=_takes_ctrl_c,
    )
    _, err = process.communicate()
    assert err == b"lirank-ext info: interrupted\n"
    assert process.returncode == 130


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lirank-ext {lirank_ext.__version__}\n"


def run_in(tmp_path, monkeypatch, error):
    """``info`` whose work ends with an error."""

    def fail(args):
        raise error

    monkeypatch.setattr("lirank_ext.cli.info.run", fail)
    return main(["info"])


EXTRAS = ("demo", "bench")


def test_what_the_user_can_change_is_one_sentence(tmp_path, monkeypatch, capsys):
    class Late(UserError):
        exit_code = 5

    assert run_in(tmp_path, monkeypatch, UserError("no luck")) == 2
    assert run_in(tmp_path, monkeypatch, Late("too late")) == 5
    assert run_in(tmp_path, monkeypatch, KeyboardInterrupt()) == 130
    assert run_in(tmp_path, monkeypatch, ModuleNotFoundError(name="rich")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "lirank-ext info: no luck",
        "lirank-ext info: too late",
        "lirank-ext info: interrupted",
        "lirank-ext info: needs rich, which is not installed: "
        + packages.install_line("demo", "bench"),
    ]
    with pytest.raises(ValueError, match="a defect"):  # not hidden: it is ours to mend
        run_in(tmp_path, monkeypatch, ValueError("a defect"))


def test_every_error_for_the_user_is_one():
    from lirank_ext.benchmarks.study.plan import StudyError
    from lirank_ext.data.errors import DataError, MissingPackage
    from lirank_ext.models import ConfigError

    assert all(issubclass(e, UserError) for e in (DataError, MissingPackage, ConfigError))
    assert issubclass(StudyError, UserError)


def command(*argv, **options):
    """A command in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "lirank_ext", *map(str, argv)], **options)


@pytest.mark.parametrize("argv", [["info"], ["verify", "--op", OP, "--device", "cpu"]])
def test_a_reader_that_goes_away_is_no_error(argv):
    process = command(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate()
    assert err == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        process = command("info", stdout=full, stderr=subprocess.PIPE)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == b"lirank-ext info: cannot write the output: No space left on device\n"


def test_the_source_folder_says_that_it_is_not_built(tmp_path):
    """Python started in a checkout imports the sources there and not the installed package."""
    package = tmp_path / "lirank_ext"
    ignored = shutil.ignore_patterns("*.so", "kernels", "benchmarks", "__pycache__")
    shutil.copytree(REPOSITORY / "lirank_ext", package, ignore=ignored)
    (tmp_path / "setup.py").touch()

    def run(*argv, code=""):
        # -S: the finder of an installation in place would find the missing parts elsewhere.
        paths = [str(tmp_path), *(p for p in sys.path if p.endswith("-packages"))]
        code = f"import sys; sys.path[:0] = {paths}; {code}import lirank_ext.cli as c; "
        start = [sys.executable, "-S", "-c", code + "sys.exit(c.main(sys.argv[1:]))", *argv]
        environment = {k: v for k, v in os.environ.items() if k != "LIRANK_NO_EXT"}
        return subprocess.run(
            start, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )

    for name in ("bench", "info"):
        done = run(name)
        assert done.returncode == 2, done.stderr
        assert "are not built and hide an installed package" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    why = "from lirank_ext.library.load import why_no_extension; print(why_no_extension)"
    done = run("--version", code=f"{why}; ")
    assert "are not built and hide an installed package" in done.stdout


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("lirank_ext._progress.time.monotonic", lambda: now[0])
    with Progress("training", 100) as progress:
        for _ in range(100):
            now[0] += 0.125
            progress.show({"loss": "0.5"})
            progress.update()
    assert capsys.readouterr().err.splitlines() == [
        "training: 40 of 100 steps, loss 0.5",
        "training: 80 of 100 steps, loss 0.5",
    ]
    with Progress("training", 100, shown=False) as progress:
        now[0] += 100
        progress.update()
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch):
    pytest.importorskip("tqdm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("training", 3) as progress:
        assert list(progress.over("abc")) == list("abc")
        assert progress.done == 3
    assert "training" in stream.getvalue() and stream.getvalue().endswith("\r")
    monkeypatch.setenv("TERM", "dumb")
    stream.truncate(0)
    with Progress("training", 3) as progress:
        progress.update()
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("argv", [[], ["dance"], ["verify", "--device", "tpu"], ["info", "--x"]])
def test_bad_usage_exits_2(argv, capsys):
    assert main(argv) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["verify", "--op", OP, "--json"], ["bench", "--op", "isotonic", "--json"]]
)
def test_a_folder_that_is_not_there_is_said_before_the_work(argv, capsys, tmp_path):
    path = tmp_path / "nowhere" / "x.json"
    assert main([*argv, str(path)]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--" in capsys.readouterr().out


def test_module_and_script_are_the_same(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "lirank_ext", "info"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and lirank_ext.__version__ in done.stdout


def fake_run(monkeypatch, expect):
    """``bench`` on one tiny workload."""

    def workloads(device, peers, quick):
        one = torch.ones(4)
        yield harness.Workload(OP, "tiny", {"lirank": lambda: one * 2}, expect=expect, items=4)

    module = type("Module", (), {"workloads": staticmethod(workloads)})
    monkeypatch.setattr(harness, "modules", lambda name=None: [module])


def test_bench_writes_what_it_printed(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    fake_run(monkeypatch, lambda: torch.full((4,), 2.0))
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    assert main(["bench", "--op", OP, "--quick", "--seconds", "0.1", *files]) == 0
    out, err = capsys.readouterr()
    assert "tiny" in out and "tiny" in err
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["measured"][0]["timings"][0]["provider"] == "lirank"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_bench_exits_1_where_the_op_disagrees(monkeypatch, capsys):
    fake_run(monkeypatch, lambda: torch.full((4,), 3.0))
    assert main(["bench", "--op", OP, "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "NOT TIMED: error 1.00e+00" in printed and "/row" not in printed


@pytest.mark.parametrize("option", ["--threads", "--seconds"])
def test_bench_refuses_senseless_numbers(option, capsys):
    assert main(["bench", option, "0"]) == 2
    assert option in capsys.readouterr().err


def test_plain_table_is_aligned():
    text = _table.plain_table("T", ("name", ">n"), [["a", "1"], ["longer", "22"]])
    assert text.splitlines() == ["T", "name     n", "------  --", "a        1", "longer  22"]


def test_tables_without_rich_are_plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = io.StringIO()
    _table.print_table("", ("a",), [["[not markup]"]], ["bad"], stream)
    assert stream.getvalue().splitlines() == ["a", "-" * 12, "[not markup]"]


def test_tables_with_rich_keep_brackets_and_long_rows():
    pytest.importorskip("rich")
    stream = io.StringIO()
    _table.print_table("", ("a", ">b"), [["[not markup]", "x" * 120]], ["bad"], stream)
    assert any(
        "[not markup]" in line and "x" * 120 in line for line in stream.getvalue().split("\n")
    )


@pytest.mark.parametrize(
    ("given", "loaded", "wanted"),
    [({}, False, "1000"), ({"OMP_WAIT_POLICY": "active"}, False, None), ({}, True, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(
    monkeypatch, given, loaded, wanted
):
    for name in cores.VARIABLES:
        monkeypatch.setenv(name, "")  # restored at the end, whatever share does
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cores, "sys", SimpleNamespace(modules={"torch": torch} if loaded else {}))
    cores.share()
    assert os.environ.get("GOMP_SPINCOUNT") == wanted
