"""``torchrun -m lirank_ext train``: several processes compute the steps of one."""

from __future__ import annotations

import copy
import csv
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import make_config  # noqa: E402

from lirank_ext.cli import main  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.data.loader import Position, Split  # noqa: E402
from lirank_ext.nn import NumericBatchNorm  # noqa: E402
from lirank_ext.training.global_norms import share_statistics  # noqa: E402
from lirank_ext.training.session import load_model, open_loader  # noqa: E402
from lirank_ext.training.settings import Config  # noqa: E402
from lirank_ext.training.trainer import CHECKPOINT  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.skipif(sys.platform != "linux", reason="torchrun is tried on Linux"),
]

# The steps of several processes differ from those of one in the order of sums alone. Adam divides
# by the size of a gradient, which makes rounding errors of small gradients visible.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
EXACT = {"atol": 0, "rtol": 0}

# Runs the commands of its second argument, one after the other in the same process, after the
# lines of its first argument, which put something in the way of one process.
DRIVER = """
import json, os, signal, sys
from lirank_ext.cli import main
from lirank_ext.data.errors import DataError
from lirank_ext.training import trainer
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
def at(rank, step, act, folder="o"):
    before = trainer.Trainer._step
    def step_(self, batch):
        here = (RANK, self.progress.step, ATTEMPT, self.output.name)
        if here == (rank, step, 0, folder):
            act()
        before(self, batch)
    trainer.Trainer._step = step_
def fail():
    raise DataError("this process cannot go on")
exec(sys.argv[1])
for command in json.loads(sys.argv[2]):
    code = main(command)
    if code:
        sys.exit(code)
"""


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "clicks.csv")


def write_data(path):
    """Clicks and likes that depend on a user and an item, with missing ages and odd weights."""
    rng = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["user", "item", "age", "past", "click", "like", "weight"])
        for _ in range(500):
            user, item, age = rng.integers(0, 20), rng.integers(0, 30), rng.normal(40, 10)
            logit = (user % 4 - 1.5) + (item % 3 - 1.0) + 0.05 * (age - 40)
            labels = (rng.random(2) < 1 / (1 + np.exp(-logit))).astype(int)
            past = " ".join(f"i{j}" for j in rng.integers(0, 30, rng.integers(0, 4)))
            shown = "" if rng.random() < 0.1 else f"{age:.1f}"
            weight = rng.choice([0.0, 0.5, 1.0, 3.0])
            lines.writerow([f"u{user}", f"i{item}", shown, past, *labels, weight])
    return path


def write_config(path: Path, change=lambda model: None, **training) -> Path:
    """The small model of the other tests without dropout, whose draws differ by process."""
    config = make_config().to_dict()
    config["training"].update({"tune": "off", "fisher_rows": 20, "patience": 0, **training})
    for name in ("embedding", "mlp", "history"):
        config["model"][name]["dropout"] = 0.0
    config["model"]["mlp"]["batch_norm"] = False
    change(config["model"])
    path.write_text(json.dumps(config))
    return path


def command(data, config, output, *more) -> list[str]:
    return [str(a) for a in ("train", data, "--config", config, "--output", output, *more)]


def launch(count, commands, before="", restarts=0) -> subprocess.Popen:
    """Starts ``torchrun`` on some commands."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={count}", f"--max-restarts={restarts}", "--no-python"]
    driver = [sys.executable, "-c", DRIVER, before, json.dumps(commands)]
    return start([*torchrun, *driver])


def start(words, **variables) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, env=environment, text=True, **pipes)


def ended(process) -> tuple[int, str, str]:
    """Exit code, and what was printed."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


def run(count, commands, before="", restarts=0) -> tuple[int, str, str]:
    return ended(launch(count, commands, before, restarts))


def assert_same(one, other, **tolerance):
    """The models in two folders have the same weights, and the same evaluations before them."""
    ours, theirs = (load_model(folder)[0].state_dict() for folder in (one, other))
    for name in theirs:
        mine, wanted = ours[name], theirs[name]
        if tolerance and name.endswith("qkv.bias"):
            # Softmax does not see the bias of the keys: its gradient is rounding errors alone,
            # which Adam makes a walk.
            mine, wanted = (
                torch.cat([t[: len(t) // 3], t[-len(t) // 3 :]]) for t in (mine, wanted)
            )
        torch.testing.assert_close({name: mine}, {name: wanted}, **(tolerance or EXACT))
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, other)]
    for mine, wanted in zip(*(r["evaluations"] for r in reports), strict=True):
        assert mine["step"] == wanted["step"]
        assert mine["training_loss"] == pytest.approx(wanted["training_loss"], rel=1e-5)
        for task, figures in wanted["tasks"].items():
            assert mine["tasks"][task]["log_loss"] == pytest.approx(figures["log_loss"], rel=1e-4)
            assert mine["tasks"][task]["rows"] == figures["rows"]


def every_part(model):
    """Two tasks, weights, groups, batch norms, and what is fitted to the finished model."""
    model["schema"]["tasks"].append({"name": "like"})
    model["schema"].update(weight="weight", group="user")
    model["head"].update(kind="mmoe", batch_norm=True, dropout=0.0)
    model["mlp"].update(batch_norm=True)


# Before a batch norm a bias has no gradient but rounding errors: small steps of Adam keep that walk
# small, and the tables learn at their own rate. With seed 0 an input of a ReLU is 0 to rounding:
# then one process with the rows of its batches in another order differs from itself.
EVERY_PART = {"monitor": "gauc", "lr": 1e-6, "seed": 1, "epochs": 1}


def effects(model):
    model["schema"].update(popularity="item")
    model["explore"].update(enabled=True)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_the_steps_of_one(data, tmp_path, count):
    configs = {
        "parts": write_config(tmp_path / "a.yaml", every_part, **EVERY_PART),
        # Of three rows, one process of four has none.
        "few": write_config(
            tmp_path / "b.yaml", effects, batch_size=3, max_steps=25, shuffle_rows=200
        ),
        "adam": write_config(
            tmp_path / "c.yaml", table_optimizer="adam", negatives=0.5, ema=0.9, clip=0.1, epochs=1
        ),
    }
    alone = {name: tmp_path / f"{name} alone" for name in configs}
    together = {name: tmp_path / f"{name} together" for name in configs}
    for name, config in configs.items():
        assert main(command(data, config, alone[name])) == 0
    commands = [command(data, configs[name], together[name]) for name in configs]
    code, out, err = run(count, commands)
    assert code == 0, err
    assert out.count("training: ") == len(configs)  # one process prints
    for name in configs:
        assert_same(together[name], alone[name], **TOLERANCE)


def test_a_killed_process_restarts_all_from_the_last_checkpoint(data, tmp_path):
    """With dropout: the draws of a step do not depend on what was drawn before."""
    config = write_config(tmp_path / "c.yaml", with_dropout, checkpoint_every=3)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    kill = "at(1, 8, lambda: os.kill(os.getpid(), signal.SIGKILL), 'killed')"
    commands = [command(data, config, undisturbed), command(data, config, folder)]
    code, _, err = run(2, commands, kill, restarts=1)
    assert code == 0, err
    assert "process 0 of 2 lost another one" in err
    assert_same(folder, undisturbed)


def with_dropout(model):
    model["mlp"].update(dropout=0.3, batch_norm=True)
    model["embedding"].update(dropout=0.1)


def test_a_restart_leaves_an_older_run_alone(data, tmp_path):
    """A folder that is in use is refused in every attempt, though its checkpoint would fit."""
    config = write_config(tmp_path / "c.yaml", max_steps=2)
    folder = tmp_path / "model"
    assert main(command(data, config, folder)) == 0
    before = (folder / CHECKPOINT).stat().st_mtime_ns
    code, _, err = run(2, [command(data, config, folder)], restarts=1)
    assert code != 0
    assert err.count("give --resume to go on, or --overwrite to start again") == 2  # attempts
    assert (folder / CHECKPOINT).stat().st_mtime_ns == before


def test_an_error_of_one_process_ends_all_with_its_sentence(data, tmp_path):
    config = write_config(tmp_path / "c.yaml")
    began = time.monotonic()
    code, _, err = run(2, [command(data, config, tmp_path / "o")], "at(1, 3, fail)")
    assert code != 0
    assert time.monotonic() - began < 200  # not the half hour that a lost process is given
    assert err.count("lirank-ext train: this process cannot go on") == 1
    assert "lost another one" not in err
    assert "exitcode  : 2" in err


def test_sigterm_writes_a_checkpoint_that_any_number_of_processes_resumes(data, tmp_path):
    config = write_config(tmp_path / "c.yaml", epochs=3)
    alone, folder = tmp_path / "alone", tmp_path / "o"
    assert main(command(data, config, alone)) == 0
    # The signal comes to one process; all of them stop after the same step.
    stop = "at(1, 9, lambda: signal.raise_signal(signal.SIGTERM))"
    code, _, err = run(2, [command(data, config, folder)], stop)
    assert code != 0
    assert err.count(f"stopped after step 10; --resume goes on from {folder}") == 1
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    assert main(command(data, config, copied, "--resume")) == 0
    code, _, err = run(4, [command(data, config, folder, "--resume")])
    assert code == 0, err
    for resumed in (copied, folder):
        assert_same(resumed, alone, **TOLERANCE)


# What is given is changed by no trial: their steps are then those of one process.
SMALL = ["--label", "click", "--ignore", "like,weight", "--epochs", "1"]
for key, value in {
    "model.embedding.dim": 4,
    "model.embedding.dropout": 0,
    "model.mlp.dims": [8],
    "model.mlp.dropout": 0,
    "model.mlp.batch_norm": "false",
    "model.cross.rank": 4,
    "training.batch_size": 64,
    "training.fisher_rows": 20,
}.items():
    SMALL += ["--set", f"{key}={value}"]


def test_no_thread_of_an_exchange_is_left_when_a_process_ends(data, tmp_path):
    """One that still gives back a tensor while Python ends aborts the process."""
    config = write_config(tmp_path / "c.yaml", max_steps=2)
    before = r"""
import atexit
def tell():
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    os.write(1, b"left: %d\n" % sum("gloo" in name for name in names))  # not cut by another line
atexit.register(tell)
"""
    code, out, err = run(2, [command(data, config, tmp_path / "o")], before)
    assert code == 0, err
    assert out.count("left: 0") == 2


@pytest.mark.parametrize("kind", ["on", "search"])
def test_trials_choose_as_in_one_process(data, tmp_path, kind):
    options = [*SMALL, "--tune", kind, "--check"]
    if kind == "search":
        pytest.importorskip("optuna")
        options += ["--set", "training.tune_trials=2"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = [str(a) for a in ("train", data, *options, "--output")]
    assert main([*arguments, str(alone)]) == 0
    code, _, err = run(2, [[*arguments, str(together)]])
    assert code == 0, err
    found, wanted = (json.loads((f / "report.json").read_text()) for f in (together, alone))
    assert found["chosen"] == wanted["chosen"]
    assert "check" in found
    for mine, other in zip(found["trials"], wanted["trials"], strict=True):
        assert (mine["name"], mine["changes"]) == (other["name"], other["changes"])
        assert mine["best_step"] == other["best_step"]
        assert mine["tasks"]["click"]["log_loss"] == pytest.approx(
            other["tasks"]["click"]["log_loss"], rel=1e-4
        )
    assert not (together / "trials").exists()


def test_processes_on_different_data_are_refused(data, tmp_path):
    config = write_config(tmp_path / "c.yaml")
    other = "if RANK: sys.argv[2] = sys.argv[2].replace('clicks.csv', 'other.csv')"
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "other.csv").write_text("".join(lines[:-1]))
    code, _, err = run(2, [command(data, config, tmp_path / "o")], other)
    assert code != 0
    assert err.count("process 1 of 2 has other data than process 0") == 1


def test_a_process_that_does_not_answer_is_given_up(data, tmp_path):
    """Without torchrun, which would wait half a minute for the process that stands still."""
    config = write_config(tmp_path / "c.yaml")
    before = """
import functools, datetime
from lirank_ext.training import processes
processes.SeveralProcesses = functools.partial(
    processes.SeveralProcesses, timeout=datetime.timedelta(seconds=10)
)
at(1, 4, lambda: os.kill(os.getpid(), signal.SIGSTOP))
"""
    words = [
        sys.executable,
        "-c",
        DRIVER,
        before,
        json.dumps([command(data, config, tmp_path / "o")]),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (start(words, RANK=str(rank), **variables) for rank in range(2))
    try:
        code, _, err = ended(first)
    finally:
        second.kill()
        second.communicate()
    assert code == 1
    assert "process 0 of 2 lost another one" in err
    assert "did not answer within 10 s" in err


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR"])
def test_several_processes_without_a_launcher_are_refused(
    data, tmp_path, capsys, monkeypatch, missing
):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(missing)
    config = write_config(tmp_path / "c.yaml")
    assert main(command(data, config, tmp_path / "o")) == 2
    assert f"WORLD_SIZE is 2, and {missing} is not set" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


class Ranks:
    """Exchanges of some threads that stand for processes."""

    def __init__(self, count):
        self.count, self.barrier = count, threading.Barrier(count)
        self.box = [None] * count

    def gather(self, rank, values):
        self.box[rank] = values.detach().clone()
        self.barrier.wait(20)
        found = torch.stack(self.box)
        self.barrier.wait(20)
        return found

    def run(self, work):
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(work, range(self.count)))


@pytest.mark.parametrize("rows", [1, 2, 3, 20])
@pytest.mark.parametrize("kind", [torch.nn.BatchNorm1d, NumericBatchNorm])
def test_batch_norms_take_the_rows_of_all_processes(rows, kind):
    """Output, gradients and running statistics are those of one batch norm on all rows."""
    torch.manual_seed(rows)
    count, width = 3, 4
    if rows == 1 and kind is torch.nn.BatchNorm1d:
        pytest.skip("PyTorch refuses a single row")
    x = (torch.randn(rows, width, dtype=torch.float64) * 5 + 100).requires_grad_(
        kind is not NumericBatchNorm
    )
    if kind is NumericBatchNorm:
        x[torch.rand(rows, width) < 0.2] = float("nan")
    alone = kind(width).double()
    with torch.no_grad():
        alone.weight.copy_(torch.rand(width))
    copies = [copy.deepcopy(alone) for _ in range(count)]
    grads = torch.randn(rows, width, dtype=torch.float64)
    ranks = Ranks(count)

    def work(rank):
        gather = functools.partial(ranks.gather, rank)
        share_statistics(copies[rank], gather, lambda values: gather(values).sum(0))
        mine = x[rank::count].detach().requires_grad_(x.requires_grad)
        for _ in range(2):
            out = copies[rank](mine)
        out.backward(grads[rank::count])
        return out.detach(), mine.grad

    found = ranks.run(work)
    for _ in range(2):
        out = alone(x)
    out.backward(grads)
    close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)
    for rank, (mine, gradient) in enumerate(found):
        close(mine, out[rank::count])
        if x.requires_grad:
            close(gradient, x.grad[rank::count])
    for name in ("weight", "bias"):
        close(sum(getattr(c, name).grad for c in copies), getattr(alone, name).grad)
    for name, value in alone.state_dict().items():
        for norm in copies:
            close(norm.state_dict()[name], value)


def test_replicas_that_differ_are_found(data, tmp_path):
    config = write_config(tmp_path / "c.yaml", epochs=1)
    before = """
def differ(self=None):
    import gc
    model = next(o for o in gc.get_objects() if isinstance(o, trainer.Trainer)).model
    model.calibration[0].bias.data += 1e-7
at(1, 3, differ)
"""
    code, _, err = run(2, [command(data, config, tmp_path / "o")], before)
    assert code != 0
    assert err.count("process 1 of 2 has other weights 'calibration.0.bias' than process 0") == 1


def loader_of(path, tmp_path, **training):
    config = Config.load(write_config(tmp_path / "c.yaml", **training))
    broken = BadRows(config.training.bad_rows == "skip")
    split = Split(0.2, seed=1)
    return open_loader(config, [path], broken, split=split, shuffle=True)


@pytest.mark.parametrize("bad_rows", ["raise", "skip"])
@pytest.mark.parametrize("shuffle_rows", [120, 1000])
@pytest.mark.parametrize("start", [Position(0), Position(3, 0, 2)])
def test_the_parts_of_a_batch_are_its_rows(data, tmp_path, bad_rows, shuffle_rows, start):
    """Whether rows are converted before or after they are shared out."""
    options = {"bad_rows": bad_rows, "shuffle_rows": shuffle_rows, "batch_size": 30}
    whole = list(loader_of(data, tmp_path, **options).epoch(start))
    assert len(whole) > 5
    count = 4
    for process in range(count):
        parts = list(loader_of(data, tmp_path, **options).epoch(start, (process, count)))
        for (after, part), (wanted, batch) in zip(parts, whole, strict=True):
            assert after == wanted
            assert part.all_rows == len(batch) == part.whole.weight
            assert torch.equal(part.labels, batch.labels[process::count])
            for key in ("numeric", "history/past/lengths"):
                mine, all_rows = part.features[key], batch.features[key]
                torch.testing.assert_close(mine, all_rows[process::count], equal_nan=True)
            ids = batch.features["ids/ids"].view(len(batch), -1)[process::count]
            assert torch.equal(part.features["ids/ids"], ids.reshape(-1))


def test_a_broken_row_is_named_by_the_process_that_has_it(data, tmp_path):
    lines = data.read_text().splitlines(keepends=True)
    user, item, _, *others = lines[433].split(",")
    lines[433] = ",".join([user, item, "old", *others])
    data.write_text("".join(lines))
    found = []
    for share in ((0, 1), (0, 2), (1, 2)):
        try:
            for _ in loader_of(data, tmp_path, shuffle_rows=120).epoch(Position(), share):
                pass
        except DataError as error:
            found.append(str(error))
    assert len(found) == 2
    assert found[0] == found[1]
    assert f"{data.name}:434: column 'age' holds 'old'" in found[0]
