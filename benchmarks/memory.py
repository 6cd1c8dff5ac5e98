"""Peak memory that a call needs beyond what was in use before it."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TRIALS = 3
SLOW = 0.3  # seconds: such a call is read once


def peak_extra_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Bytes in use at the call's peak beyond those before it, its result included.

    GPU: PyTorch's allocator. CPU: resident memory of the process (its high-water mark, reset
    through ``/proc/self/clear_refs``, Linux alone), after freed memory was given back to the
    system. That counts the scratch of C++ kernels too, which PyTorch's allocator does not see;
    it does not count scratch that a kernel keeps from call to call. Whole pages, and the
    smallest of three readings, since other threads of the process add noise of some pages.

    Args:
        call: already warmed up.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The bytes, or None where the system cannot tell.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux") or not CLEAR.exists():
        return None
    try:
        start = time.perf_counter()
        first = _one_reading(call)
        if time.perf_counter() - start > SLOW:
            return first
        return min([first, *(_one_reading(call) for _ in range(TRIALS - 1))])
    except OSError:  # a sandbox without clear_refs
        return None


def _one_reading(call: Callable[[], Any]) -> int:
    _give_back()
    CLEAR.write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {STATUS}")
