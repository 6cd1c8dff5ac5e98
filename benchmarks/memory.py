"""Measures the peak memory of a call beyond the memory that was in use before it."""

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
SLOW = 0.3  # a call that takes more seconds than this is measured only once


def peak_extra_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Bytes in use at the call's peak minus those before the call. The result counts as well.

    On a GPU the figure comes from PyTorch's allocator. On a CPU it is the high-water mark of the
    process's resident memory, which ``/proc/self/clear_refs`` resets on Linux. Freed memory is
    returned to the system first. This includes the scratch memory of C++ kernels, which PyTorch's
    allocator does not see, but not scratch that a kernel keeps between calls. The figure counts
    whole pages. It is the smallest of three readings, because other threads of the process add
    noise of some pages.

    Args:
        call: the call to measure, already warmed up.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The number of bytes, or None if the system does not provide it.
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
    CLEAR.write_text("5")  # resets the high-water mark
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
