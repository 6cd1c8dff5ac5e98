"""Pieces of the cross kernels: tiles of matrices, and products that round no more than asked."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import dot, next_power_of_2, prefetch

# Where x v^T of a kernel comes from: it computes it, computes and stores it, or reads it.
COMPUTED, STORED, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b, a as it was loaded or in float32 that no rounding may shorten, b as loaded."""
    if a.dtype == b.dtype:
        total = dot(a, b, total, PRECISION)
    elif b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        total = dot(low, b, total, "ieee")
        total = dot(high, b, total, "ieee")
    else:
        total = dot(a, b.to(tl.float32), total, PRECISION)
    return total


@triton.jit
def tile(t, row, column, stride, n, d):
    """(rows, columns) of a matrix; zeros outside."""
    inside = (row < n)[:, None] & (column < d)[None, :]
    return tl.load(t + row[:, None] * stride + column[None, :], mask=inside, other=0)


@triton.jit
def clipped(t, row, column, stride, d, EVEN: tl.constexpr):
    """(rows, columns) of a matrix, all of whose rows exist; its columns end at d."""
    at = t + row[:, None] * stride + column[None, :]
    if EVEN:
        found = tl.load(at)
    else:
        found = tl.load(at, mask=(column < d)[None, :], other=0)
    return found


@triton.jit
def ask(t, row, start, stride, d, COLUMNS: tl.constexpr):
    """Ask for COLUMNS columns, from ``start``, of a matrix all of whose rows exist."""
    LINE: tl.constexpr = 1024 // t.dtype.element_ty.primitive_bitwidth
    column = start + tl.arange(0, COLUMNS // LINE) * LINE
    prefetch(t + row[:, None] * stride + tl.minimum(column, d - 1)[None, :])


@triton.jit
def keep(t, value, row, column, stride, n, d):
    """Store what ``tile`` would load."""
    inside = (row < n)[:, None] & (column < d)[None, :]
    at = t + row[:, None] * stride + column[None, :]
    tl.store(at, value.to(t.dtype.element_ty), mask=inside)


@triton.jit
def turned(t, row, column, stride, n, d):
    """The transpose of ``tile(t, column, row, ...)``: element [i, j] is t[column j, row i]."""
    inside = (row < n)[:, None] & (column < d)[None, :]
    return tl.load(t + column[None, :] * stride + row[:, None], mask=inside, other=0)


@triton.jit
def projected(
    x,
    v,
    row,
    rank,
    x_row,
    n,
    d,
    r,
    PRECISION: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x v^T of some rows."""
    h = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        a = tile(x, row, column, x_row, n, d)
        h = dot(a, turned(v, column, rank, d, d, r), h, PRECISION)
    return h


def precision() -> str:
    """Of float32 products: as cuBLAS may, and never less than the user allows."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def padded(r: int) -> int:
    """The rank as the tensor cores take it."""
    return max(16, next_power_of_2(r))
