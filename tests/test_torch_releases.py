""".ci/torch_releases.py: the stubs that let a PyTorch with CUDA be imported without CUDA."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess

import pytest
from conftest import REPOSITORY

needs_tools = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("readelf") is None,
    reason="needs gcc and readelf (binutils)",
)


@pytest.fixture(scope="module")
def releases():
    spec = importlib.util.spec_from_file_location("r", REPOSITORY / ".ci" / "torch_releases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shared(folder, name, code, *options):
    (folder / "code.c").write_text(code)
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN"]
    subprocess.run([*command, folder / "code.c", "-o", folder / name, *options], check=True)


@needs_tools
def test_stubs_stand_in_for_missing_libraries(releases, tmp_path):
    """Functions with a version and without, from two libraries of which neither is there."""
    (tmp_path / "versions").write_text("libmissing.so.12 { global: *; };")
    script = f"-Wl,--version-script={tmp_path}/versions"
    shared(tmp_path, "libmissing.so.12", "int versioned(void) { return 0; }", script)
    shared(tmp_path, "libbare.so.1", "int bare(void) { return 0; }")
    code = (
        "#include <math.h>\nint versioned(void); int bare(void);\n"
        "int both(double x) { return versioned() + bare() + (int)cos(x); }"
    )
    needs = [tmp_path / "libmissing.so.12", tmp_path / "libbare.so.1", "-Wl,--no-as-needed", "-lm"]
    shared(tmp_path, "libours.so", code, *needs)
    for name in ("libmissing.so.12", "libbare.so.1"):
        (tmp_path / name).unlink()
    with pytest.raises(OSError, match="cannot open shared object"):
        ctypes.CDLL(str(tmp_path / "libours.so"))
    releases.make_stubs(tmp_path)
    made = {p.name for p in tmp_path.iterdir() if ".so" in p.name}
    assert made == {"libours.so", "libmissing.so.12", "libbare.so.1"}
    library = ctypes.CDLL(str(tmp_path / "libours.so"))
    library.both.argtypes = [ctypes.c_double]
    assert library.both(0.0) == 2 * releases.NO_DEVICE + 1


def test_only_what_a_cpu_needs_is_installed(releases, tmp_path):
    lines = [
        "sympy>=1.13",
        "numpy; extra == 'x'",
        "triton==3.6",
        "nvidia-cudnn-cu13==9",
        "filelock",
    ]
    lines.append("cuda-bindings<14; platform_system == 'Linux'")
    folder = tmp_path / "torch-2.10.0.dist-info"
    folder.mkdir()
    text = "Name: torch\n" + "".join(f"Requires-Dist: {line}\n" for line in lines)
    (folder / "METADATA").write_text(text)
    assert releases.requirements(tmp_path) == ["sympy>=1.13", "filelock"]


def test_a_release_that_fails_fails_the_run(releases, tmp_path, monkeypatch, capsys):
    passed = {"passed": True, "rows": [{"cases": 3}]}
    smoke = {"torch": "2.10.0+cu128", "passed": ["strings"]}
    rows = {
        "2.10.0": {"torch": "2.10.0", "python": "3.11.7", "verify": passed, "smoke": smoke},
        "2.14.1": {"torch": "2.14.1", "python": "3.11.7", "failed": "verify: 1 row failed"},
    }
    monkeypatch.setattr(releases, "check", lambda wheel, release, python: rows[release])
    monkeypatch.setattr(releases, "CACHE", tmp_path / "cache")
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"0" * 1_230_000)
    monkeypatch.setattr("sys.argv", ["torch_releases.py", str(wheel), "2.10.0"])
    assert releases.main() == 0
    assert "| 2.10.0+cu128 | 3.11.7 | 3 cases passed | strings |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["torch_releases.py", str(wheel), *rows])
    assert releases.main() == 1
    said = capsys.readouterr().out
    assert "`a.whl`, 1.23 MB" in said and "torch 2.14.1: verify: 1 row failed" in said
    assert "| 2.14.1 | 3.11.7 | failed | failed |" in said
