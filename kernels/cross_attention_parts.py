"""What the kernels of attention have in common."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .launch import next_power_of_2

LOG2E = math.log2(math.e)


@triton.jit
def value_of(t, column, r, COMPUTE: tl.constexpr, MASKED: tl.constexpr = True):
    """Components of the sample that starts at t; zeros outside, which a masked load may touch."""
    at = t + column
    if MASKED:
        found = tl.load(at, mask=column < r, other=0)
    else:
        found = tl.load(at)
    return found.to(COMPUTE)


@triton.jit
def keep(t, value, column, r):
    """Store components of the sample that starts at t."""
    tl.store(t + column, value.to(t.dtype.element_ty), mask=column < r)


@triton.jit
def range_of(t, r, COMPUTE: tl.constexpr, SPAN: tl.constexpr):
    """The smallest and the largest of one sample's values, SPAN of them in flight."""
    high, low = tl.full((SPAN,), -float("inf"), COMPUTE), tl.full((SPAN,), float("inf"), COMPUTE)
    for start in range(0, r, SPAN):
        j = start + tl.arange(0, SPAN)
        value = value_of(t, j, r, COMPUTE)
        high = tl.maximum(high, tl.where(j < r, value, -float("inf")))
        low = tl.minimum(low, tl.where(j < r, value, float("inf")))
    return tl.min(low, 0), tl.max(high, 0)


@triton.jit
def nearest_key(query, keys):
    """Of the smallest and the largest key, the one with the larger score, for each query."""
    return tl.where(query < 0, keys[0], keys[1])


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of the rows."""
    return tuple(t.stride(0) for t in tensors)


def tiles(r: int) -> tuple[dict, ...]:
    """Pairs a program takes at once; LONG of them a thread has in registers, SHORT along lanes."""
    side = min(64, max(16, next_power_of_2(r)))
    half, span = max(16, side // 2), min(1024, max(16, next_power_of_2(r)))
    wanted = ((side, half, 4), (half, half, 2))
    return tuple(
        {"LONG": a, "SHORT": b, "EVEN": r % b == 0, "SPAN": span, "num_warps": w}
        for a, b, w in dict.fromkeys(wanted)
    )
