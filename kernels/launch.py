"""Launching Triton kernels: on which arguments, and in which of a few configurations.

A launcher hands ``choose`` a short list of candidates (block sizes, warps, pipeline depth, or
another plan). The first call of a class of shapes times them all on the caller's tensors; every
later one takes the fastest, so that a new batch size neither compiles nor waits. While a CUDA
graph is being captured nothing can be timed: the first candidate, the safe one, runs then.

Candidates sum in different orders, so their results differ in the last bits, and two processes
may choose differently. Under ``torch.use_deterministic_algorithms(True)`` the first candidate
always runs. The environment variable LIRANK_TRITON_CANDIDATE, read when this module is imported,
or the context manager ``turn`` names one candidate for every choice and times none: sanitizers
use it, and so do the tests of single candidates.

The interpreter (TRITON_INTERPRET=1) and the resource report take part through ``record``.
Kernels run on torch's current device: ``lirank_ext.library.gpu`` makes it the tensors' own.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

Candidate = TypeVar("Candidate")
INTERPRETED: bool = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(INTERPRETED)

# Said in full because Triton is changing the default, with a warning on every launch.
FUSION = {"enable_fp_fusion": True}

_chosen: dict[tuple, int] = {}
measured: dict[tuple, dict[str, float]] = {}  # microseconds of the candidates of each choice made
_named = os.environ.get("LIRANK_TRITON_CANDIDATE")
_turn: int | None = int(_named) if _named else None
_record: list[Launch] | None = None
_recorded_architecture = 80


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments that a launcher gives it."""

    kernel: Any
    args: tuple
    constants: dict[str, Any]
    grid: tuple[int, ...]


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b; the interpreter multiplies the bits of bfloat16, so it gets float32."""
    if _INTERPRETED and a.dtype == tl.bfloat16:
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        found = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    return found


@triton.jit
def prefetch(at):
    """Ask for the cache lines at these addresses, so that they are in L2 when they are loaded."""
    if not _INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0",
            "=r,l",
            [at.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run one kernel; nothing happens where the grid is empty.

    A kernel with the constant WAIT set starts before the one in front of it has ended (programmatic
    dependent launch, sm_90), and waits for that itself; one with TRIGGER set allows it.
    """
    if constants.get("WAIT"):
        constants["launch_pdl"] = True
    if _record is not None:
        _record.append(Launch(kernel, args, constants, grid))
    elif 0 not in grid:
        if INTERPRETED or _profiled():
            kernel[grid](*args, **(FUSION | constants))
        else:
            _launch(kernel, grid, args, constants)


# Compiled kernels by all that Triton compiles one anew for, with what follows the caller's
# arguments. Triton itself finds this out on every launch.
_compiled: dict[tuple, tuple[Any, tuple]] = {}
_constexprs: dict[Callable, list[bool]] = {}  # by the kernel: which of its parameters are such


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
    """Run one kernel as Triton does, but for hooks and for the check of global constants."""
    device, stream = _place()
    if (constexprs := _constexprs.get(kernel.fn)) is None:
        constexprs = _constexprs[kernel.fn] = [p.is_constexpr for p in kernel.params]
    kinds = tuple(map(_kind, args, constexprs))
    key = (kernel.fn, device, tuple(constants.items()), kinds)
    known = _compiled.get(key)
    if known is None:
        compiled = kernel[grid](*args, **(FUSION | constants))
        if None not in kinds:
            rest = kernel.params[len(args) :]
            _compiled[key] = compiled, tuple(constants.get(p.name, p.default) for p in rest)
        return
    compiled, rest = known
    sizes, hooks = (*grid, 1, 1)[:3], (None, None, None)
    compiled.run(*sizes, stream, compiled.function, compiled.packed_metadata, *hooks, *args, *rest)


def _profiled() -> bool:
    """Whether somebody wants to hear of every launch."""
    knobs = triton.knobs.runtime
    hooks = (knobs.launch_enter_hook, knobs.launch_exit_hook)
    return any(getattr(hook, "calls", hook) for hook in hooks)


def _place() -> tuple[int, int]:
    """The current device and the handle of its stream."""
    active = triton.runtime.driver.active
    device = active.get_current_device()
    return device, active.get_current_stream(device)


def _kind(value: Any, constexpr: bool) -> Any:
    """What Triton may compile a kernel anew for; None where this does not know."""
    kind = type(value)
    if constexpr or kind is bool or value is None:
        return kind, value
    if kind is int:
        return value == 1, value % 16 == 0, value.bit_length() // 32
    if kind is float:
        return kind
    if kind is Tensor or kind is torch.nn.Parameter:
        return value.dtype, value.data_ptr() % 16 == 0
    return None


def choose(
    key: tuple,
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], None],
    rehearse: Callable[[Candidate], None] | None = None,
) -> None:
    """Run the fastest candidate for this key; ``rehearse`` (``run`` if None) is what is timed.

    Args:
        key: what the choice may depend on beside the current device; see ``size_class``.
        candidates: the first is taken where nothing can be timed.
        run: does the work with one candidate; running it twice must change nothing.
    """
    if _record is not None:
        for candidate in candidates:
            run(candidate)
        return
    if _turn is not None:
        return run(candidates[_turn % len(candidates)])
    if INTERPRETED or len(candidates) == 1 or torch.are_deterministic_algorithms_enabled():
        return run(candidates[0])
    key = (torch.cuda.current_device(), *key)
    place = _chosen.get(key)
    if place is None:
        if torch.cuda.is_current_stream_capturing():
            return run(candidates[0])
        place, found = _fastest(candidates, rehearse or run)
        _chosen[key] = place
        measured[key] = {str(c): us for c, us in zip(candidates, found, strict=False)}
    run(candidates[place])


def _fastest(
    candidates: Sequence[Candidate], run: Callable[[Candidate], None]
) -> tuple[int, list[float]]:
    """The place of the fastest, and the microseconds of each.

    By the GPU's time alone: called one by one, a launch costs the host more than the kernel takes,
    and a plan of two kernels would never be chosen.
    """
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "0") != "0":
        return 0, []  # without the caching allocator nothing can be captured, so nothing is timed
    found = [_replayed(lambda c=c: run(c)) for c in candidates]
    return found.index(min(found)), found


def _replayed(call: Callable[[], None], calls: int = 8, replays: int = 5) -> float:
    """Microseconds a call, of so many in a graph: the median of a few replays."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, and loads what a capture must not load
        # Other threads may allocate meanwhile: their calls are not part of this capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(calls):
                call()
        times = []
        for _ in range(replays + 1):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            graph.replay()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
    torch.cuda.current_stream().wait_stream(stream)
    return statistics.median(times[1:]) * 1e3 / calls


def cdiv(a: int, b: int) -> int:
    """Triton's own takes 5 us a call on the host: it looks for constants of a kernel."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def size_class(n: int) -> int:
    """Sizes between two powers of two count as one."""
    return n.bit_length()


def batch_class(n: int) -> int:
    """Batches between two powers of four count as one."""
    return (n.bit_length() + 1) // 2


@contextmanager
def recording(architecture: int = 80):
    """Collects the launches instead of making them: every candidate of every choice."""
    global _record, _recorded_architecture
    before, _record, _recorded_architecture = _recorded_architecture, [], architecture
    try:
        yield _record
    finally:
        _record, _recorded_architecture = None, before


@contextmanager
def turn(number: int):
    """Every choice takes candidate ``number`` modulo their count; nothing is timed."""
    global _turn
    before, _turn = _turn, number
    try:
        yield
    finally:
        _turn = before


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def multiprocessors(t: Tensor) -> int:
    """Of the tensor's device; a few where there is none (interpreter, resource report)."""
    return _multiprocessors(t.device) if t.is_cuda else 3


@cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def architecture(t: Tensor) -> int:
    """Of the tensor's device, 90 for sm_90; where there is none, the one being recorded."""
    return _architecture(t.device) if t.is_cuda else _recorded_architecture


def rows(t: Tensor) -> Tensor:
    """The tensor, or a copy whose last axis is contiguous."""
    return t if t.shape[-1] == 1 or t.stride(-1) == 1 else t.contiguous()


def compute_type(t: Tensor) -> tl.dtype:
    """Half precision is computed in float32, as everywhere in the package."""
    return tl.float64 if t.dtype == torch.float64 else tl.float32


def wide(t: Tensor) -> torch.dtype:
    """The same as a type of tensors: what is kept between two kernels."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
