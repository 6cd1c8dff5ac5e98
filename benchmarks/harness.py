"""Times the workloads that ``bench_<stem>.py`` defines, for ``python -m lirank_ext bench``.

Every provider of a workload is first compared with the float64 reference. A provider that disagrees
is not timed. Repeats are interleaved: each repeat calls every provider once, in an order that
rotates, so that a slow phase of the machine affects all of them. A speed-up is the median of the
ratios within the repeats, not a ratio of medians.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lirank_ext.benchmarks.ceilings import Ceilings, seconds_of
from lirank_ext.benchmarks.memory import peak_extra_bytes
from lirank_ext.benchmarks.report import OURS, Measured, Report, Timing
from lirank_ext.library.op import OPS
from lirank_ext.library.processor import Watch, free_threads

# Smallest and largest number of repeats of a workload.
LEAST, MOST = 5, 400
PATIENCE = 10  # two repeats are enough once they take this many times the requested seconds
DIRECTIONS = ("forward", "backward", "step")
CEILINGS = ("copy", "gather", "fma", "exp")


@dataclass
class Workload:
    """One op on one shape, and everything that can compute it.

    Attributes:
        op: name of the op.
        label: the shape in words.
        providers: zero-argument closures over prepared inputs, by name. ``"lirank"`` is ours. Each
            returns a tensor or a sequence of tensors, which are gradients if the direction is
            backward. With direction ``"forward"`` they are called under
            ``torch.inference_mode()``.
        expect: computes the result in float64, or exactly if it is integer. Without it the others
            must agree with the provider named ``"reference"``.
        tolerance: allowed error relative to the largest magnitude of each result.
        bytes: number of bytes that must move, for GB/s.
        flops: additions plus multiplications, if ``ceiling`` is ``"fma"``.
        exps: exponentials of the plain formula, if ``ceiling`` is ``"exp"``.
        items: number of rows, keys or samples, for ns per item.
        unit: name of an item.
        ceiling: the limit of the machine to compare with. ``"copy"`` and ``"gather"`` compare
            ``bytes``, ``"fma"`` compares ``flops``, and ``"exp"`` compares ``exps``.
        gather: (bytes of a row, bytes of the table) for the bare loop that measures ``"gather"``.
        direction: ``"forward"``, ``"backward"`` or ``"step"`` (forward and backward).
    """

    op: str
    label: str
    providers: dict[str, Callable[[], Any]]
    expect: Callable[[], Any] | None = None
    tolerance: float = 1e-4
    bytes: int = 0
    flops: int = 0
    items: int = 0
    unit: str = "row"
    ceiling: str = "copy"
    direction: str = "forward"
    exps: int = 0
    gather: tuple[int, int] = (64, 256 << 20)

    def __post_init__(self) -> None:
        if OURS not in self.providers:
            raise ValueError(f"Workload {self.op}: wanted a provider '{OURS}'")
        if self.expect is None and "reference" not in self.providers:
            raise ValueError(f"Workload {self.op}: wanted 'expect' or a provider 'reference'")
        if self.ceiling not in CEILINGS or self.direction not in DIRECTIONS:
            text = f"ceiling {self.ceiling!r}, direction {self.direction!r}"
            raise ValueError(f"Workload {self.op}: unknown {text}")

    @property
    def amount(self) -> int:
        """The number of bytes, operations or exponentials to compare with the ceiling."""
        return {"fma": self.flops, "exp": self.exps}.get(self.ceiling, self.bytes)


# ---- finding the workloads -------------------------------------------------------------


def stems() -> list[str]:
    """The families that have a ``bench_<stem>.py``."""
    names = (m.name for m in pkgutil.iter_modules([os.path.dirname(__file__)]))
    return sorted(n.removeprefix("bench_") for n in names if n.startswith("bench_"))


def names() -> list[str]:
    """The names that ``run`` accepts: families and public ops."""
    ops = [n for n, op in OPS.items() if not op.internal and op.family in stems()]
    return list(dict.fromkeys(stems() + ops))


def modules(name: str | None = None) -> list[ModuleType]:
    """The benchmark modules of one family or op, or all of them."""
    wanted = stems() if name is None else [name if name in stems() else OPS[name].family]
    return [importlib.import_module(f"lirank_ext.benchmarks.bench_{stem}") for stem in wanted]


# ---- agreement, before anything is timed -----------------------------------------------


def tensors(result: Any) -> list[Tensor]:
    """A result as a list of dense tensors."""
    found = [result] if isinstance(result, Tensor) else [torch.as_tensor(r) for r in result]
    return [t.detach().to_dense() if t.is_sparse else t.detach() for t in found]


def disagreement(got: Any, wanted: Any, tolerance: float) -> str:
    """How a result differs from the wanted one, or "" if it agrees."""
    got, wanted = tensors(got), tensors(wanted)
    if len(got) != len(wanted):
        return f"{len(got)} results, wanted {len(wanted)}"
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            return f"shape {tuple(a.shape)}, wanted {tuple(b.shape)}"
        if not a.is_floating_point():
            if not torch.equal(a, b.to(a.dtype)):
                return f"{int((a != b).sum())} of {a.numel()} integers differ"
            continue
        a, b = a.double(), b.double()
        allowed = tolerance * float(b.abs().max()) if b.numel() else 0.0
        error = float((a - b).abs().max()) if b.numel() else 0.0
        if not error <= allowed:  # true for NaN as well
            return f"error {error:.2e}, allowed {allowed:.2e}"
    return ""


def refusals(workload: Workload) -> dict[str, str]:
    """The providers that fail or disagree with the reference, each with its problem in words."""
    wanted = (workload.expect or workload.providers["reference"])()
    found = {}
    for name, call in workload.providers.items():
        try:
            problem = disagreement(call(), wanted, workload.tolerance)
        except Exception as error:
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if problem:
            found[name] = problem
    return found


# ---- timing ----------------------------------------------------------------------------


def _sample(call: Callable[[], Any], count: int, device: str) -> float:
    """Seconds per call, averaged over ``count`` calls."""
    return seconds_of(call, device, count) / count


def _calls_a_sample(call: Callable[[], Any], device: str, wanted: float) -> int:
    """How many calls make a sample long enough. This also warms up the provider."""
    count = 1
    while True:
        passed = _sample(call, count, device) * count
        if passed >= wanted or count >= 1 << 20:
            return count
        count = max(2 * count, min(16 * count, int(count * wanted / max(passed, 1e-9)) + 1))


def interleaved(
    providers: dict[str, Callable[[], Any]], device: str, seconds: float
) -> dict[str, list[float]]:
    """Seconds per call of every provider, with one value for each repeat."""
    sample = min(5e-3, seconds / 20)
    counts = {name: _calls_a_sample(call, device, sample) for name, call in providers.items()}
    samples: dict[str, list[float]] = {name: [] for name in providers}
    order, started = list(providers), time.perf_counter()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(1, MOST + 1):
            for name in order:
                samples[name].append(_sample(providers[name], counts[name], device))
            order.append(order.pop(0))
            passed = time.perf_counter() - started
            enough = LEAST if passed < PATIENCE * seconds else 2
            if passed > seconds and repeat >= enough:
                break
    finally:
        if enabled:
            gc.enable()
    return samples


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[round(q * (len(ordered) - 1))]


def set_fractions(measured: Measured, ceilings: Ceilings) -> None:
    """Set each provider's share of the ceiling, or None if the ceiling is not known."""
    rate = {
        "copy": lambda: ceilings.copy(measured.bytes),
        "gather": lambda: ceilings.gather(*measured.gather),
        "fma": ceilings.fma,
        "exp": ceilings.exp,
    }[measured.ceiling]
    most = rate() if measured.amount else None
    for timing in measured.timings:
        timing.fraction = None if most is None else measured.amount / timing.median / most


def measure(workload: Workload, device: str, ceilings: Ceilings, seconds: float) -> Measured:
    """Check one workload, then time the providers that agree.

    Args:
        workload: the workload to measure.
        device: ``"cpu"`` or ``"cuda"``.
        ceilings: the ceilings of this machine.
        seconds: time to spend on the repeats. Each provider gets at least five, or two if they are
            very slow.
    """
    fields = ("op", "label", "direction", "items", "unit", "bytes", "ceiling", "amount", "gather")
    result = Measured(*(getattr(workload, name) for name in fields))
    # torch.compile limits the recompilations of a function, and all shapes share one function.
    torch.compiler.reset()
    with torch.inference_mode() if workload.direction == "forward" else nullcontext():
        result.refused = refusals(workload)
        good = {n: c for n, c in workload.providers.items() if n not in result.refused}
        if OURS not in good:
            return result
        extra = {name: peak_extra_bytes(call, device) for name, call in good.items()}
        watch = Watch()
        samples = interleaved(good, device, seconds)
        if device == "cpu":
            result.saw(watch.read(), torch.get_num_threads())
    for name, values in samples.items():
        ratios = [theirs / ours for theirs, ours in zip(values, samples[OURS], strict=True)]
        middle = statistics.median(values)
        spread = (_quantile(values, 0.2), _quantile(values, 0.8), len(values))
        timing = Timing(name, middle, *spread, statistics.median(ratios), extra[name])
        result.timings.append(timing)
    set_fractions(result, ceilings)
    return result


# ---- the whole run ---------------------------------------------------------------------


def run(
    name: str | None = None,
    device: str = "cpu",
    peers: bool = False,
    quick: bool = False,
    threads: int | None = None,
    seconds: float | None = None,
) -> Report:
    """Measure the workloads of one op or family, or of all. Progress is shown on stderr.

    Args:
        name: an op or a family (see :func:`names`), or None for all.
        device: ``"cpu"`` or ``"cuda"``.
        peers: also time other libraries that are installed.
        quick: use fewer shapes and repeats.
        threads: number of CPU threads. None takes PyTorch's setting, or as many as have a core
            that others leave free.
        seconds: time for the repeats of one workload. None means 2, or 0.4 if quick.

    Returns:
        The report, which can be printed, drawn and written.

    Raises:
        ValueError: there is no op or family of that name.
    """
    if name is not None and name not in names():
        raise ValueError(f"bench: nothing is called '{name}'; there are: {', '.join(names())}")
    if threads is None and device == "cpu":
        threads = _free_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    seconds = (0.4 if quick else 2.0) if seconds is None else seconds
    ceilings = Ceilings(device, 0.1 if quick else 0.3)
    report = Report(device, ceilings)
    clock = Clock(modules(name), seconds)
    for module in clock:
        if peers and hasattr(module, "absent_peers"):
            report.absent += [p for p in module.absent_peers() if p not in report.absent]
        for workload in module.workloads(device, peers, quick):
            if name in (None, workload.op) or name in stems():
                _progress(f"{workload.op} {workload.label} {workload.direction}")
                report.measured.append(measure(workload, device, ceilings, seconds))
    _progress("")
    for measured in report.measured:  # again, because later readings may have raised a ceiling
        set_fractions(measured, ceilings)
    return report


class Clock:
    """Goes through the families and says on stderr how long they will take.

    Args:
        families: the modules with workloads.
        seconds: of repeats of one shape.
    """

    def __init__(self, families: Sequence[ModuleType], seconds: float) -> None:
        self.families, self.seconds = families, seconds

    def __iter__(self) -> Iterator[ModuleType]:
        """The modules; the time left is guessed from that of those before."""
        total, start = len(self.families), time.monotonic()
        _say(
            f"bench: {total} families of ops, {self.seconds:g} s of repeats for each shape and "
            "direction, besides compiling for torch.compile"
        )
        for done, family in enumerate(self.families, 1):
            yield family
            if done < total:
                taken = time.monotonic() - start
                left = taken / done * (total - done)
                _say(f"bench: {done} of {total} families, {taken:.0f} s; about {left:.0f} s left")


def _say(text: str) -> None:
    """A line on stderr that stays."""
    _progress("")
    print(text, file=sys.stderr, flush=True)


def _free_threads() -> int:
    """PyTorch's number of threads, or fewer with a line that says so."""
    wanted = torch.get_num_threads()
    free, seen = free_threads()
    if free < wanted:
        print(
            f"bench: other processes use {seen.others:.1f} cores, so it takes {free} of {wanted} "
            "threads; --threads N takes N",
            file=sys.stderr,
        )
    return min(free, wanted)


def _progress(text: str) -> None:
    """One line on stderr, overwritten on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
