"""Hashed embedding bags over packed tables on GPUs, for serving.

The walk is that of ``hashed_embedding.py``. Rows are read as ``quantized_embedding_layout.py``
says, BYTES bytes of codes a program. The gradients of weights (``_packed_dot``) take the same walk.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import REGISTERS, contiguous, findings, pool, shape, spans
from .hashed_embedding import gather, rows_at, rule_of, tables_of
from .launch import cdiv, launch
from .quantized_embedding_layout import (
    aligned,
    byte_block,
    code_bytes,
    even,
    form,
    keep_columns,
    load_codes,
    load_pair,
    odd,
    places,
    pooled,
)


@triton.jit
def _packed_row(table, row, valid, height, dim, byte, BITS: tl.constexpr):
    """Codes as stored, scale and mid of these rows of a packed table."""
    codes, stride, first, pair = places(0, dim, height, BITS)
    scale, mid = load_pair(table, first + row * pair, valid)
    return load_codes(table, row * stride, valid, byte, codes), scale, mid


@triton.jit
def _packed_four(tables, rows, valid, heights, dim, byte, BITS: tl.constexpr):
    """The sum of the four rows of each id, in even and odd columns (8 bits: all, and nothing)."""
    c0, s0, m0 = _packed_row(tables[0], rows[0], valid, heights[0], dim, byte, BITS)
    c1, s1, m1 = _packed_row(tables[1], rows[1], valid, heights[1], dim, byte, BITS)
    c2, s2, m2 = _packed_row(tables[2], rows[2], valid, heights[0], dim, byte, BITS)
    c3, s3, m3 = _packed_row(tables[3], rows[3], valid, heights[1], dim, byte, BITS)
    mid = ((m0 + m1) + (m2 + m3))[:, None]
    low = even(c0, BITS) * s0[:, None] + mid
    low += even(c1, BITS) * s1[:, None]
    low += even(c2, BITS) * s2[:, None]
    low += even(c3, BITS) * s3[:, None]
    high = low
    if BITS == 4:
        high = odd(c0) * s0[:, None] + mid
        high += odd(c1) * s1[:, None]
        high += odd(c2) * s2[:, None]
        high += odd(c3) * s3[:, None]
    return low, high


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _packed_bag(
    ids, offsets, quotient_b, remainder_b, quotient_c, remainder_c, weights, out, errors, bags,
    known, count, fixed, dim, quotients: tl.int64, seed: tl.int64, buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr, WHOLE: tl.constexpr, MEAN: tl.constexpr, BITS: tl.constexpr,
    BAGS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    start = tl.program_id(1) * BYTES
    byte = start + tl.arange(0, BYTES)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    tables, rule = (quotient_b, remainder_b, quotient_c, remainder_c), (seed, buckets, remainders)
    heights = (quotients, remainders)
    low, high = tl.zeros((BAGS, BYTES), tl.float32), tl.zeros((BAGS, BYTES), tl.float32)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        rows = rows_at(ids, place, valid, rule, PREHASHED, WHOLE)
        a, b = _packed_four(tables, rows, valid, heights, dim, byte, BITS)
        low = pool(low, weights, place, valid, a)
        if BITS == 4:
            high = pool(high, weights, place, valid, b)
    low, high = pooled(low, high, length, MEAN)
    keep_columns(out + bag * dim, low, high, bag < bags, start, dim, BITS, BYTES)


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _packed_dot(
    grad, ids, offsets, quotient_b, remainder_b, quotient_c, remainder_c, out, errors, bags, known,
    count, fixed, dim, quotients: tl.int64, seed: tl.int64, buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr, WHOLE: tl.constexpr, BITS: tl.constexpr, BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    tables, rule = (quotient_b, remainder_b, quotient_c, remainder_c), (seed, buckets, remainders)
    heights = (quotients, remainders)
    codes, _, _ = form(dim, BITS)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        rows = rows_at(ids, place, valid, rule, PREHASHED, WHOLE)
        total = tl.zeros((BAGS, BYTES), tl.float32)
        for start in range(0, codes, BYTES):
            byte = start + tl.arange(0, BYTES)
            low, high = _packed_four(tables, rows, valid, heights, dim, byte, BITS)
            if BITS == 8:
                total += low * gather(grad, bag, dim, valid, byte, dim, tl.float32)
            else:
                total += low * gather(grad, bag, dim, valid, 2 * byte, dim, tl.float32)
                total += high * gather(grad, bag, dim, valid, 2 * byte + 1, dim, tl.float32)
        tl.store(out + place, tl.sum(total, 1), mask=valid)


# ---- launchers -----------------------------------------------------------------------------


def _plan(bags: int, dim: int, bits: int) -> tuple[int, int, dict[str, int]]:
    """Blocks of bags, blocks of bytes, and the constants of a kernel."""
    codes = code_bytes(dim, bits)
    block = min(128, byte_block(codes))
    c = {"BAGS": min(32, 1024 // block), "BYTES": block}
    c |= {"num_warps": max(1, c["BAGS"] * block // 256)} | REGISTERS
    return cdiv(bags, c["BAGS"]), cdiv(codes, block), c


def _arguments(a: Any, out: Tensor, *before_out: Tensor | None) -> tuple:
    """What both kernels take behind the gradient: ids, tables, sizes and rule."""
    sizes = shape(a.ids, a.offsets, a.include_last_offset)
    heights = a.quotient_b.shape[0], a.remainder_b.shape[0]
    tables = map(aligned, tables_of(a))
    args = (*contiguous(a.ids, a.offsets), *tables, *before_out, out, findings(out.device))
    return *args, *sizes, a.dim, heights[0], *rule_of(a, heights[1])


def quantized_hashed_embedding_bag(a) -> Tensor:
    """The op on a GPU; no scratch. A table that lies on an odd address is copied."""
    bags, *_ = shape(a.ids, a.offsets, a.include_last_offset)
    out = a.quotient_b.new_empty((bags, a.dim), dtype=a.output_dtype or torch.float32)
    *grid, c = _plan(bags, a.dim, a.bits)
    args = _arguments(a, out, *contiguous(a.per_sample_weights))
    launch(_packed_bag, tuple(grid), *args, a.mode == "mean", a.bits, **c)
    return out


def quantized_hashed_embedding_bag_backward(a) -> Tensor:
    """Gradient of per_sample_weights over packed tables; zeros for ids in no bag."""
    bags, *_ = shape(a.ids, a.offsets, a.include_last_offset)
    out = torch.zeros(a.ids.shape, dtype=torch.float32, device=a.grad.device)
    blocks, _, c = _plan(bags, a.dim, a.bits)
    launch(_packed_dot, (blocks,), a.grad.contiguous(), *_arguments(a, out), a.bits, **c)
    return out
