"""Rows of quantized tables on GPUs, made, packed and read: without the CUDA kernels.

``_quantize``: one row a program, read twice (the second time from L1): the extremes, then the
codes. No contraction of multiply and add and correctly rounded divisions: the bits of the
reference. ``_dequantize``, ``_pack``, ``_unpack``: ROWS rows and a block of columns a program.

Bytes: quantizing reads 4 D and writes D + 8 a row (float32, 8 bits); 1M rows of D=64: 328 MB, 98
us at 3.35 TB/s (H100, datasheet).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import CODES, ROW, contiguous, findings, report
from .launch import cdiv, launch, next_power_of_2
from .quantized_embedding_layout import aligned, load_pair, places, row_bytes


@triton.jit(do_not_specialize=["n"])
def _quantize(
    weight,
    codes,
    scales,
    mids,
    errors,
    n,
    dim,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    high = tl.full((COLUMNS,), -float("inf"), tl.float32)
    low = tl.full((COLUMNS,), float("inf"), tl.float32)
    finite = tl.full((COLUMNS,), 1, tl.int32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        w = tl.load(weight + row * dim + column, mask=column < dim, other=0).to(tl.float32)
        finite = finite & (tl.abs(w) < float("inf")).to(tl.int32)
        high = tl.maximum(high, tl.where(column < dim, w, -float("inf")))
        low = tl.minimum(low, tl.where(column < dim, w, float("inf")))
    largest, smallest, steps = tl.max(high, 0), tl.min(low, 0), 2.0 * HALF - 1.0
    scale = tl.div_rn(largest - smallest, tl.full((), 0, tl.float32) + steps)
    middle = largest * HALF + smallest * (HALF - 1.0)
    mid = tl.div_rn(middle, tl.full((), 0, tl.float32) + steps)
    good = (tl.abs(scale) < float("inf")) & (tl.abs(mid) < float("inf"))
    good = good & (tl.min(finite, 0) == 1)
    report(errors, ROW, good == 0, row, row, 0, n)
    constant = scale == 0
    scale, mid = tl.where(constant, 1.0, scale), tl.where(constant, largest, mid)
    tl.store(scales + row, scale)
    tl.store(mids + row, mid)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        w = tl.load(weight + row * dim + column, mask=column < dim, other=0).to(tl.float32)
        x = tl.div_rn(w - mid, tl.zeros((COLUMNS,), tl.float32) + scale)
        x = tl.minimum(tl.maximum(x, -1.0 * HALF - 1.0), 1.0 * HALF)
        x = (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest integer, ties to even
        x = tl.minimum(tl.maximum(x, -1.0 * HALF), HALF - 1.0)
        code = tl.where(constant | (good == 0), 0.0, x).to(tl.int8)
        tl.store(codes + row * dim + column, code, mask=column < dim)


@triton.jit(do_not_specialize=["n"])
def _dequantize(codes, scale, mid, out, n, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < dim)[None, :]
    s, m = tl.load(scale + row, mask=row < n, other=0), tl.load(mid + row, mask=row < n, other=0)
    at = row[:, None] * dim + column[None, :]
    code = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + at, m[:, None] + code * s[:, None], mask=inside)


@triton.jit(do_not_specialize=["n"])
def _pack(
    codes,
    scale,
    mid,
    packed,
    errors,
    n: tl.int64,
    dim,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    count, stride, first, pair = places(0, dim, n, BITS)
    beside = (byte < stride) & ((byte < count) | (byte >= count + 8))  # not where the pair lies
    at = codes + row[:, None] * dim
    here = (row < n)[:, None]
    if BITS == 8:
        stored = tl.load(at + byte[None, :], mask=here & (byte < dim)[None, :], other=0)
    else:
        low = tl.load(at + 2 * byte[None, :], mask=here & (2 * byte < dim)[None, :], other=-8)
        odd_column = 2 * byte + 1
        high = tl.load(at + odd_column[None, :], mask=here & (odd_column < dim)[None, :], other=-8)
        bad = (tl.minimum(low, high) < -8) | (tl.maximum(low, high) > 7)
        report(errors, CODES, tl.max(bad.to(tl.int32), 1) > 0, row, row, 0, n)
        stored = (low.to(tl.int32) + 8 & 15) | ((high.to(tl.int32) + 8 & 15) << 4)
    to = packed + row[:, None] * stride + byte[None, :]
    tl.store(to, stored.to(tl.uint8), mask=here & beside[None, :])
    if tl.program_id(1) == 0:
        both = (packed + first + row * pair).to(tl.pointer_type(tl.float32))
        tl.store(both, tl.load(scale + row, mask=row < n, other=0), mask=row < n)
        tl.store(both + 1, tl.load(mid + row, mask=row < n, other=0), mask=row < n)


@triton.jit(do_not_specialize=["n"])
def _unpack(
    packed,
    codes,
    scale,
    mid,
    n: tl.int64,
    dim,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    _, stride, first, pair = places(0, dim, n, BITS)
    inside = (row < n)[:, None] & (column < dim)[None, :]
    at = packed + row[:, None] * stride
    if BITS == 8:
        code = tl.load(at + column[None, :], mask=inside, other=0)
    else:
        byte = tl.load(at + (column // 2)[None, :], mask=inside, other=0).to(tl.int32)
        code = ((byte >> (column % 2 * 4)[None, :]) & 15) - 8
    tl.store(codes + row[:, None] * dim + column[None, :], code.to(tl.int8), mask=inside)
    if tl.program_id(1) == 0:
        s, m = load_pair(packed, first + row * pair, row < n)
        tl.store(scale + row, s, mask=row < n)
        tl.store(mid + row, m, mask=row < n)


# ---- launchers -----------------------------------------------------------------------------


def quantize_rows(a) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU; a row that is not finite is counted, and gets codes 0."""
    weight = a.weight.detach().contiguous()
    n, dim = weight.shape
    codes = torch.empty((n, dim), dtype=torch.int8, device=weight.device)
    scale, mid = (torch.empty(n, dtype=torch.float32, device=weight.device) for _ in range(2))
    c = {"HALF": 1 << (a.bits - 1), "COLUMNS": min(1024, max(32, next_power_of_2(dim)))}
    c |= {"num_warps": 1 if dim <= 256 else 4, "enable_fp_fusion": False}
    launch(_quantize, (n,), weight, codes, scale, mid, findings(weight.device), n, dim, **c)
    return codes, scale, mid


def _codes_and_pairs(a: Any) -> list[Tensor]:
    for name in ("scale", "mid"):  # the references take float64 too
        dtype = getattr(a, name).dtype
        if dtype != torch.float32:
            text = f"wanted dtype {torch.float32}, got {dtype}"
            raise TypeError(f"lirank::{type(a).__name__}: argument '{name}': {text}")
    return contiguous(a.codes, a.scale, a.mid)


def _tile(n: int, dim: int, name: str) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and constants of a kernel that takes ROWS rows and a block of columns a program."""
    block = min(128, max(16, next_power_of_2(dim)))
    c = {"ROWS": 2048 // block, name: block, "num_warps": 4}
    return (cdiv(n, c["ROWS"]), cdiv(dim, block)), c


def dequantize_rows(a) -> Tensor:
    """The op on a GPU, with the bits of the reference."""
    codes, scale, mid = _codes_and_pairs(a)
    n, dim = codes.shape
    out = torch.empty((n, dim), dtype=torch.float32, device=codes.device)
    grid, c = _tile(n, dim, "COLUMNS")
    launch(_dequantize, grid, codes, scale, mid, out, n, dim, **c, enable_fp_fusion=False)
    return out


def pack_rows(a) -> Tensor:
    """The op on a GPU; a code that does not fit is cut off, and its row counted."""
    codes, scale, mid = _codes_and_pairs(a)
    n, dim = codes.shape
    width = row_bytes(dim, a.bits)
    packed = torch.empty((n, width), dtype=torch.uint8, device=codes.device)
    grid, c = _tile(n, width, "BYTES")
    launch(_pack, grid, codes, scale, mid, packed, findings(codes.device), n, dim, a.bits, **c)
    return packed


def unpack_rows(a) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU."""
    packed, n = aligned(a.packed), a.packed.shape[0]
    codes = torch.empty((n, a.dim), dtype=torch.int8, device=packed.device)
    scale, mid = (torch.empty(n, dtype=torch.float32, device=packed.device) for _ in range(2))
    grid, c = _tile(n, a.dim, "COLUMNS")
    launch(_unpack, grid, packed, codes, scale, mid, n, a.dim, a.bits, **c)
    return codes, scale, mid
