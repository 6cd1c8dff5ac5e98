"""Random calls of every op, on every CPU backend, against the reference, for as long as one likes.

A call must be refused by all or by none. What is accepted must have the shapes and dtypes that the
fake kernel promises, leave its inputs alone, be equal for one thread and for two, and be as near to
the float64 reference as its precision allows. Calls with numbers that are not finite or beyond 1e15
are not compared by value: float32 overflows there where float64 does not.

The calls run in processes of their own with limited memory, so that a crash is a finding too.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..library.op import OPS, implementations
from .compare import EPSILON, REFUSALS, _bits, _outputs, _widen
from .random_calls import GENERATORS, random_call

MEMORY = 4 << 30
CHUNK = 400  # calls of one process
# Ops of bytes and codes, whose results are equal bit for bit and have no float64 form.
EXACT = ("hash_strings", "murmur_hash", "pack_rows", "quantize_rows", "vocabulary_lookup")
# Beyond it sums of float32 overflow where those of float64 do not.
LARGE = 1e15


@dataclass(frozen=True)
class Finding:
    """A call on which a backend and the reference disagree."""

    op: str
    seed: int
    problem: str

    def __str__(self) -> str:
        return f"{self.op}:{self.seed}: {self.problem}"


Result = tuple[list[Tensor] | None, str]  # or why there is none


def _run(function: Callable[..., Any], args: tuple) -> Result:
    try:
        return _outputs(function(*args)), ""
    except (*REFUSALS, MemoryError) as error:
        return None, str(error) or type(error).__name__


def _map(args: tuple, change: Callable[[Tensor], Tensor]) -> tuple:
    return tuple(change(a) if isinstance(a, Tensor) else a for a in args)


def _is_large(args: tuple) -> bool:
    """Whether a number of the call is not finite, or so large that sums of it may not be."""
    floats = [a for a in args if isinstance(a, Tensor) and a.is_floating_point() and a.numel()]
    numbers = [abs(a) for a in args if isinstance(a, float)]
    return any(not float(a.abs().max()) < LARGE for a in floats) or any(
        not 1 / LARGE < n < LARGE for n in numbers if n
    )


def _far(got: Tensor, wanted: Tensor, own: Tensor) -> str:
    """Why a result is too far from the float64 one, or "".

    ``own`` is the reference's result in the dtype of the call.
    """
    if got.shape != wanted.shape:
        return f"shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    if not got.is_floating_point():
        return "" if torch.equal(got, wanted) else "not bit-equal"
    if got.numel() == 0:
        return ""
    error, other = (t.double() - wanted.double() for t in (got, own))
    allowed = 512 * EPSILON[got.dtype] * float(wanted.double().abs().max())
    allowed = max(allowed, 4 * float(other.abs().max()), torch.finfo(got.dtype).tiny)
    worst = float(error.abs().max())
    return "" if worst <= allowed else f"error {worst:.2e}, allowed {allowed:.2e}"


def judge(op: str, seed: int) -> str:
    """What is wrong with the backends on one random call, in words, or "".

    Args:
        op: name of a public op.
        seed: of the call.
    """
    args = tuple(OPS[op].call(**random_call(op, seed)))
    if op == "hash_strings":  # the pair of tensors is one argument of the function alone
        args = tuple(a for a in args if a is not None)
    reference = OPS[op].reference
    own, refused = _run(reference, copy.deepcopy(args))
    for name, backend in implementations(op).items():
        if name == "reference" or name == "cuda":
            continue
        problem = _judge_backend(op, backend, args, own, refused)
        if problem:
            return f"{name}: {problem}"
    return ""


def _judge_backend(op: str, backend: Any, args: tuple, own: Any, refused: str) -> str:
    mine = copy.deepcopy(args)
    before = _bits(mine)
    got, message = _run(backend, mine)
    if not all(map(torch.equal, _bits(mine), before)):
        return "an input was changed"
    if got is None and own is None:
        fits = message.startswith("lirank::")
        return "" if fits else f"refused in words of its own: {message.splitlines()[0]}"
    if got is None and op == "dequantize_rows" and "got torch.float64" in message:
        return ""  # the reference takes pairs in float64, so that verify can run it in float64
    if got is None:
        return f"refused what the reference takes: {message.splitlines()[0]}"
    if own is None:
        return f"took what the reference refuses: {refused.splitlines()[0]}"
    with torch.device("meta"):
        promised = _outputs(OPS[op].overload(*_map(args, lambda t: t.to("meta"))))
    kinds = [(t.dtype, tuple(t.shape)) for t in got]
    if kinds != [(t.dtype, tuple(t.shape)) for t in promised]:
        return f"gave {kinds}, the fake kernel promised otherwise"
    if _differs_by_threads(backend, args, got):
        return "other bits on another number of threads"
    if _is_large(args):
        return ""
    if op in EXACT:
        same = all(map(torch.equal, _bits(tuple(got)), _bits(tuple(own))))
        return "" if same else "other bits than the reference"
    wanted, refused = _run(OPS[op].reference, _map(args, _widen))
    if wanted is None:
        return f"the float64 reference refused: {refused.splitlines()[0]}"
    problems = (_far(*each) for each in zip(got, wanted, own, strict=True))
    return next(filter(None, problems), "")


def _differs_by_threads(backend: Any, args: tuple, got: list[Tensor]) -> bool:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        again, _ = _run(backend, copy.deepcopy(args))
    finally:
        torch.set_num_threads(before)
    return again is None or not all(map(torch.equal, _bits(tuple(got)), _bits(tuple(again))))


def fuzz(
    op: str | None = None, seconds: float = 60.0, seed: int = 0
) -> Iterator[tuple[str, int, list[Finding]]]:
    """Judge random calls for a while.

    Args:
        op: one op, or None for all in turn.
        seconds: how long.
        seed: of the first call; later ones count up from it.

    Yields:
        After every process: the op, the number of calls judged, and what was found.
    """
    names = sorted(GENERATORS) if op is None else [op]
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        name, first = names[turn % len(names)], seed + turn // len(names) * CHUNK
        left = max(end - time.monotonic(), 1.0)
        # Every op gets its turn, however short the time.
        share = left if op else max(left / max(len(names) - turn, 1), 1.0)
        yield name, *_chunk(name, first, min(share, 60.0))
        turn += 1


def _chunk(op: str, first: int, seconds: float) -> tuple[int, list[Finding]]:
    """Calls judged and findings of one process."""
    command = [sys.executable, "-m", __name__, op, str(first), str(CHUNK), str(seconds)]
    # A hang is a finding as well: no call takes minutes.
    done = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300)
    lines = [json.loads(s) for s in (done.stdout if done else "").splitlines() if s[:1] == "{"]
    found = [Finding(op, s["seed"], s["problem"]) for s in lines if s["problem"]]
    judged = sum("problem" in s and s["problem"] is not None for s in lines)
    if done is None or done.returncode:
        seed = lines[-1]["seed"] if lines else first
        how = "no end after minutes" if done is None else f"the process died ({done.returncode})"
        last = (done.stderr.strip().splitlines() or [""])[-1] if done else ""
        found.append(Finding(op, seed, f"{how} {last}".strip()))
    return judged, found


def _serve(op: str, first: int, count: int, seconds: float) -> None:
    """Judge calls and print a line before and after each; run by :func:`_chunk`."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = used + MEMORY if limit == resource.RLIM_INFINITY else min(limit, used + MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (most, limit))
    end = time.monotonic() + seconds
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed, "problem": None}), flush=True)
        print(json.dumps({"seed": seed, "problem": judge(op, seed)}), flush=True)
        if time.monotonic() > end:
            return


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
