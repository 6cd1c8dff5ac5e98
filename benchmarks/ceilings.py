"""Measures the machine's ceilings in the same run that compares with them.

On a CPU they are bare C++ loops (``csrc/ceilings.cpp``) on as many threads as PyTorch uses. On a
GPU they are PyTorch's copy, PyTorch's bfloat16 matrix product, and a bare gather
(``kernels/ceilings.cu``).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch

from lirank_ext.library import load

SECONDS = 0.3
# A ceiling is the best of this many readings, spread over the run, so that a slow phase of the
# machine does not lower it.
TAKES = 3
SMALLEST, LARGEST = 64 << 10, 256 << 20


class Ceilings:
    """Measures each ceiling the first three times that it is asked for.

    Attributes:
        measured: the best reading of every ceiling so far, by a descriptive name.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str, seconds: float = SECONDS) -> None:
        self.device, self.seconds = device, seconds
        self.measured: dict[str, float] = {}
        self._takes: dict[str, int] = {}

    def _keep(self, name: str, measure: Callable[[], float]) -> float | None:
        """The best rate so far, or None if it cannot be measured here."""
        if self.device == "cpu" and load.extension is None:
            return None
        self._takes[name] = self._takes.get(name, 0) + 1
        if self._takes[name] <= TAKES:
            self.measured[name] = max(measure(), self.measured.get(name, 0.0))
        return self.measured[name]

    def copy(self, moved: int) -> float | None:
        """Bytes read plus bytes written per second, with about ``moved`` bytes in use.

        A small shape is compared with a copy in the cache, which is faster than main memory.
        """
        size = min(max(1 << (max(moved, 1) - 1).bit_length(), SMALLEST), LARGEST)
        name = f"copy {size >> 10} KiB, bytes/s"
        if self.device == "cuda":
            return self._keep(name, lambda: _cuda_copy(size))
        return self._keep(name, lambda: _cpu("copy", size)(self.seconds))

    def gather(self, row_bytes: int, table_bytes: int) -> float | None:
        """Bytes per second when reading random rows. On a GPU, rows are padded to 16 bytes."""
        if self.device == "cuda":
            whole = -(-row_bytes // 16) * 16
            name = f"gather {whole} B of {table_bytes >> 10} KiB, bytes/s"
            if not load.cuda_loaded:
                return self.copy(LARGEST)
            return self._keep(name, lambda: _cuda_gather(whole, table_bytes))
        name = f"gather {row_bytes} B of {table_bytes >> 10} KiB, rows/s"
        rate = self._keep(name, lambda: _cpu("gather", row_bytes, table_bytes)(self.seconds))
        return None if rate is None else rate * row_bytes

    def fma(self) -> float | None:
        """Operations per second of float32 multiply-adds (CPU) or bf16 matrix products (GPU)."""
        if self.device == "cuda":
            return self._keep("bf16 matrix product, flop/s", _cuda_matrix)
        return self._keep("fma, flop/s", lambda: _cpu("fma")(self.seconds))

    def exp(self) -> float | None:
        """Exponentials per second, or None on a GPU, where they are not measured."""
        if self.device == "cuda":
            return None
        return self._keep("exp, 1/s", lambda: _cpu("exp")(self.seconds))


def _cpu(name: str, *sizes: int) -> Callable[[float], float]:
    loop = getattr(load.extension, f"ceiling_{name}")
    return lambda seconds: loop(*sizes, torch.get_num_threads(), seconds)


def seconds_of(call: Callable[[], object], device: str, count: int) -> float:
    """Seconds that ``count`` calls take; on a GPU by its own events."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(count):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) * 1e-3


def _cuda_rate(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Calls per second on the GPU, timed by events."""
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    count = max(10, int(seconds / (time.perf_counter() - start)))
    return count / seconds_of(call, "cuda", count)


def _cuda_copy(size: int) -> float:
    source = torch.zeros(size // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return _cuda_rate(lambda: target.copy_(source)) * size


def _cuda_matrix(n: int = 8192) -> float:
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return _cuda_rate(lambda: a @ b) * 2 * n**3


def gather_rows(rows: torch.Tensor, indices: torch.Tensor, out: torch.Tensor) -> None:
    """Sum the rows of each bag on the GPU, by the bare loop of ``kernels/ceilings.cu``.

    The arguments are not checked.

    Args:
        rows: (num_rows, width) float32, contiguous. The width must be a multiple of 4.
        indices: (bags, each) int64, contiguous, all of them below num_rows.
        out: (bags, width) float32, contiguous.
    """
    call = load.cuda_library().lirank_ceiling_gather_cuda
    stream = torch.cuda.current_stream(rows.device).cuda_stream
    sizes = [ctypes.c_int64(n) for n in (rows.shape[1] * 4, *indices.shape)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (rows, indices, out)]
    status = call(rows.device.index, ctypes.c_void_p(stream), pointers[0], sizes[0], pointers[1],
                  sizes[1], sizes[2], pointers[2])  # fmt: skip
    if status:
        raise RuntimeError(f"gather_rows: CUDA error {status}")


def _cuda_gather(row_bytes: int, table_bytes: int, ids: int = 1 << 20, each: int = 16) -> float:
    rows = torch.zeros(max(1, table_bytes // row_bytes), row_bytes // 4, device="cuda")
    indices = torch.randint(0, len(rows), (ids // each, each), device="cuda")
    out = torch.empty(len(indices), rows.shape[1], device="cuda")
    return _cuda_rate(lambda: gather_rows(rows, indices, out)) * ids * row_bytes
