"""Which configuration a Triton launch takes, and on which device, with a stand-in for the GPUs."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from lirank_ext.library import gpu
from lirank_ext.library.op import OPS

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")

from lirank_ext.kernels import launch


class Placed(torch.Tensor):
    """Says that it lies on a GPU."""

    @staticmethod
    def on(index: int) -> Placed:
        made = torch.zeros(2).as_subclass(Placed)
        made.index = index
        return made

    @property
    def is_cuda(self) -> bool:
        return True

    def get_device(self) -> int:
        return self.index


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, the first of them current, neither of them capturing."""
    state = SimpleNamespace(current=0, capturing=set(), entered=[])

    class Guard:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            self.before, state.current = state.current, self.index
            state.entered.append(self.index)

        def __exit__(self, *_) -> None:
            state.current = self.before

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: state.current in state.capturing
    )
    return state


@pytest.fixture
def tuned(monkeypatch):
    """A GPU's choice by time, where the last candidate is the fastest; the times taken."""
    timed = []

    def fastest(candidates, run):
        timed.append(torch.cuda.current_device())
        return len(candidates) - 1, [9.0 - i for i in range(len(candidates))]

    monkeypatch.setattr(launch, "_fastest", fastest)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_turn", None)
    monkeypatch.setattr(launch, "_chosen", {})
    monkeypatch.setattr(launch, "measured", {})
    return timed


def test_the_times_of_a_choice_are_kept(gpus, tuned):
    launch.choose(("key", 1), ({"ROWS": 16}, None), lambda c: None)
    assert launch.measured == {(0, "key", 1): {"{'ROWS': 16}": 9.0, "None": 8.0}}


def chosen(key=("op",), candidates=(0, 1, 2)) -> int:
    ran = []
    launch.choose(key, candidates, ran.append)
    assert len(ran) == 1
    return ran[0]


def launcher_of(monkeypatch, run):
    """``run`` as the launcher of an op that takes any arguments."""
    monkeypatch.setattr(gpu, "_launcher", lambda *names: run)
    op = SimpleNamespace(
        name="an_op", module="stem", family="stem", mutated=(), _check=lambda a: None
    )
    op.call = lambda *args, **kwargs: (*args, *kwargs.values())
    return gpu.launcher(op)


def launched_on(gpus, monkeypatch, *args, **kwargs) -> int:
    seen = []
    launcher_of(monkeypatch, lambda a: seen.append(gpus.current))(*args, **kwargs)
    assert gpus.current == 0
    return seen[0]


def test_a_launch_runs_on_the_device_of_its_tensors(gpus, monkeypatch):
    on_cpu, first, second = torch.zeros(2), Placed.on(0), Placed.on(1)
    assert launched_on(gpus, monkeypatch, first, on_cpu) == 0
    assert launched_on(gpus, monkeypatch, on_cpu) == 0
    assert not gpus.entered  # the current device is not set anew
    assert launched_on(gpus, monkeypatch, second, 3) == 1
    assert launched_on(gpus, monkeypatch, on_cpu, None, second) == 1
    assert launched_on(gpus, monkeypatch, 2.0, [on_cpu, second]) == 1
    assert launched_on(gpus, monkeypatch, x=second) == 1
    assert gpus.entered == [1] * 4


def test_the_device_is_restored_where_a_launcher_fails(gpus, monkeypatch):
    def fails(a):
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        launcher_of(monkeypatch, fails)(Placed.on(1))
    assert gpus.current == 0


def test_each_device_has_choices_of_its_own(gpus, tuned):
    assert [chosen() for _ in range(2)] == [2, 2]
    assert tuned == [0]
    gpus.current = 1
    assert [chosen() for _ in range(2)] == [2, 2]
    assert tuned == [0, 1]


def test_nothing_is_timed_while_the_current_device_is_capturing(gpus, tuned):
    gpus.capturing = {1}
    gpus.current = 1
    assert chosen() == 0
    assert not tuned
    gpus.current = 0
    assert chosen() == 2
    gpus.capturing = {0, 1}
    assert chosen() == 2  # chosen before the capture began


def test_deterministic_algorithms_take_the_first_candidate(gpus, tuned):
    assert chosen() == 2
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen() == 0
        assert chosen(("another",)) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen() == 2
    assert len(tuned) == 1


def test_a_named_candidate_is_taken_everywhere_and_none_is_timed(gpus, tuned):
    with launch.turn(1):
        assert chosen() == 1
        assert chosen(("few",), (0,)) == 0
    with launch.turn(0):
        assert chosen() == 0
    assert not tuned
    assert chosen() == 2


@pytest.mark.parametrize(("value", "wanted"), [("", None), ("0", 0), ("1", 1)])
def test_the_environment_names_a_candidate(monkeypatch, value, wanted):
    monkeypatch.setenv("LIRANK_TRITON_CANDIDATE", value)
    script = "from lirank_ext.kernels import launch; print(launch._turn)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.strip() == str(wanted), ran.stderr


def test_no_grid_is_longer_than_cuda_allows():
    """The second axis ends at 65,535."""
    n, k = 4, 9_000_000
    x, w, b, e = (torch.empty(size, device="meta") for size in ((n,), (k,), (), (n, k)))
    with launch.recording() as launches:
        gpu.launcher(OPS["isotonic_calibration"])(x, w, b, -17.0, 0.05, e)
        backward = gpu.launcher(OPS["isotonic_calibration_backward"])
        backward(x, x, w, b, -17.0, 0.05, e)
        backward(x, x, w, b, -17.0, 0.05)
    assert max(one.grid[0] for one in launches) > 65_535
    assert max(one.grid[1] for one in launches if len(one.grid) > 1) <= 65_535


def test_a_check_runs_once_for_a_signature(monkeypatch):
    checked, ran = [], []

    def check(a):
        checked.append(a.by)
        if not a.by > 0:
            raise ValueError("wanted a positive number")

    def an_op(a):
        ran.append(a.by)

    call = namedtuple("an_op", ["x", "by", "more"])
    op = SimpleNamespace(name="an_op", module="m", family="f", mutated=(), call=call, _check=check)
    monkeypatch.setattr(gpu, "_launcher", lambda *names: an_op)
    run, x = gpu.launcher(op), torch.zeros(2, 3)
    run(x, 1.0, [x])
    run(x + 1, 1.0, [x])
    assert checked == [1.0]
    run(x[:, :2], 1.0, [x])  # another shape, another dtype, another number, another list
    run(x.double(), 1.0, [x])
    run(x, 2.0, [x])
    run(x, 1.0, [x, x])
    assert len(checked) == 5
    for bad in (-1.0, float("nan")):
        for _ in range(2):
            with pytest.raises(ValueError, match="positive"):
                run(x, bad, [x])
    assert len(checked) == 9
    assert len(ran) == 6


def test_signatures_do_not_pile_up(monkeypatch):
    call = namedtuple("an_op", ["by"])
    checked = []
    op = SimpleNamespace(name="an_op", module="m", family="f", mutated=(), call=call)
    op._check = checked.append
    monkeypatch.setattr(gpu, "_launcher", lambda *names: lambda a: None)
    monkeypatch.setattr(gpu, "MOST_SIGNATURES", 2)
    run = gpu.launcher(op)
    for by in (1, 2, 3, 3, 1):
        run(by)
    assert len(checked) == 4  # the third made room by forgetting the first two


# ---- launching a compiled kernel again ----------------------------------------------------------


class Kernel:
    """A stand-in for a Triton kernel ``(t, n, KIND, ROWS=4)`` whose last two are constants."""

    def __init__(self) -> None:
        self.fn = object()
        names = (("t", False), ("n", False), ("KIND", True), ("ROWS", True))
        self.params = [SimpleNamespace(name=n, is_constexpr=c, default=4) for n, c in names]
        self.looked_up, self.ran = [], []

    def __getitem__(self, grid):
        def look_up(*args, **constants):
            self.looked_up.append((grid, args, constants))
            return SimpleNamespace(
                run=lambda *a: self.ran.append(a), function="f", packed_metadata="m"
            )

        return look_up


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "_place", lambda: (0, 77))
    monkeypatch.setattr(launch, "_compiled", {})
    return Kernel()


def test_a_second_launch_looks_nothing_up(kernel):
    t = torch.zeros(4)
    for n in (32, 48, 32):
        launch.launch(kernel, (5,), t, n, 0, num_warps=2)
    assert kernel.looked_up == [((5,), (t, 32, 0), launch.FUSION | {"num_warps": 2})]
    head = (5, 1, 1, 77, "f", "m", None, None, None)
    assert [a[:9] for a in kernel.ran] == [head] * 2
    assert [a[9:] for a in kernel.ran] == [(t, 48, 0, 4), (t, 32, 0, 4)]


@pytest.mark.parametrize(
    ("t", "n", "kind", "constants"),
    [
        (torch.zeros(4).double(), 32, 0, {}),
        (torch.zeros(8)[1:5], 32, 0, {}),  # its address is no multiple of 16
        (torch.zeros(4), 33, 0, {}),
        (torch.zeros(4), 1, 0, {}),
        (torch.zeros(4), 1 << 40, 0, {}),
        (torch.zeros(4), 32.0, 0, {}),
        (torch.zeros(4), 32, 16, {}),
        (torch.zeros(4), 32, False, {}),
        (torch.zeros(4), 32, 0, {"ROWS": 8}),
        (torch.zeros(4), 32, 0, {"num_warps": 8}),
        (None, 32, 0, {}),
    ],
)
def test_what_triton_compiles_anew_is_looked_up(kernel, t, n, kind, constants):
    launch.launch(kernel, (1,), torch.zeros(4), 32, 0)
    launch.launch(kernel, (1,), t, n, kind, **constants)
    assert len(kernel.looked_up) == 2 and not kernel.ran


def test_devices_have_their_own_compiled_kernels(kernel, monkeypatch):
    launch.launch(kernel, (1,), None, 2, 0)
    monkeypatch.setattr(launch, "_place", lambda: (1, 78))
    launch.launch(kernel, (1,), None, 2, 0)
    assert len(kernel.looked_up) == 2


def test_arguments_that_are_not_known_are_always_looked_up(kernel):
    for _ in range(2):
        launch.launch(kernel, (1,), object(), 2, 0)
    assert len(kernel.looked_up) == 2 and not kernel.ran


def test_a_profiler_hears_of_every_launch(kernel, monkeypatch):
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(launch.triton.knobs.runtime, "launch_enter_hook", hook)
    for _ in range(2):
        launch.launch(kernel, (1,), None, 2, 0)
    assert len(kernel.looked_up) == 2 and not kernel.ran
