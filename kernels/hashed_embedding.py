"""Hashed embedding bags on GPUs: where nvcc was not there to build the CUDA kernels.

A program takes BAGS bags and COLUMNS columns and walks over their ids together, one of each bag
a step: hash, two divisions of 32 bits a half, four gathers of (BAGS, COLUMNS), so that 4 * BAGS
rows are under way at once. Hashes are computed again for every block of columns. The gradients of
weights (``_hashed_dot``) take the same walk.

Bytes: an id reads 4 rows of D items, a bag writes D; the remainder tables (m rows) sit in L2, so
2 rows of D an id come from memory: 1M ids at D=64 in float32 are 512 MB, 153 us at 3.35 TB/s
(H100, datasheet).

Dropped: ids in tiles of one bag (half of the lanes idle where bags hold one id).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import REGISTERS, columns, contiguous, findings, keep, pool, shape, spans
from .hashing import murmur
from .launch import cdiv, compute_type, launch, wide

# ---- the rows of an id ---------------------------------------------------------------------


@triton.jit
def bucket_rows(half, buckets, remainders, WHOLE: tl.constexpr):
    """Quotient and remainder rows of a 32-bit half of the hash."""
    bucket = half
    if not WHOLE:  # 2^32 buckets need no remainder, and have none in 32 bits
        bucket = half % buckets.to(tl.uint32)
    m = remainders.to(tl.uint32)
    return (bucket // m).to(tl.int64), (bucket % m).to(tl.int64)


@triton.jit
def rows_at(ids, place, valid, rule, PREHASHED: tl.constexpr, WHOLE: tl.constexpr):
    """Rows of quotient_b, remainder_b, quotient_c, remainder_c of the ids at these places.

    rule: seed, buckets and remainders.
    """
    seed, buckets, remainders = rule
    h = tl.load(ids + place, mask=valid, other=0)
    h = h.to(tl.uint64, bitcast=True) if PREHASHED else murmur(h, seed)
    low, high = (h & 0xFFFFFFFF).to(tl.uint32), (h >> 32).to(tl.uint32)
    qb, rb = bucket_rows(low, buckets, remainders, WHOLE)
    qc, rc = bucket_rows(high, buckets, remainders, WHOLE)
    return qb, rb, qc, rc


@triton.jit
def gather(table, row, stride, valid, column, dim, COMPUTE: tl.constexpr):
    inside = valid[:, None] & (column < dim)[None, :]
    at = table + row[:, None] * stride + column[None, :]
    return tl.load(at, mask=inside, other=0).to(COMPUTE)


@triton.jit
def _four(tables, rows, valid, column, dim, COMPUTE: tl.constexpr):
    """(ids, columns): the sum of the four rows of each id."""
    b = gather(tables[0], rows[0], dim, valid, column, dim, COMPUTE)
    b += gather(tables[1], rows[1], dim, valid, column, dim, COMPUTE)
    c = gather(tables[2], rows[2], dim, valid, column, dim, COMPUTE)
    c += gather(tables[3], rows[3], dim, valid, column, dim, COMPUTE)
    return b + c


# ---- look-ups ------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _hashed_bag(
    ids, offsets, quotient_b, remainder_b, quotient_c, remainder_c, weights, out, errors, bags,
    known, count, fixed, dim, seed: tl.int64, buckets: tl.int64, remainders: tl.int64,
    PREHASHED: tl.constexpr, WHOLE: tl.constexpr, MEAN: tl.constexpr, COMPUTE: tl.constexpr,
    UNROLL: tl.constexpr, BAGS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    tables, rule = (quotient_b, remainder_b, quotient_c, remainder_c), (seed, buckets, remainders)
    total = tl.zeros((BAGS, COLUMNS), COMPUTE)
    for step in range(0, tl.max(length, 0), UNROLL):
        for ahead in tl.static_range(UNROLL):
            valid, place = step + ahead < length, begin + step + ahead
            rows = rows_at(ids, place, valid, rule, PREHASHED, WHOLE)
            row = _four(tables, rows, valid, column, dim, COMPUTE)
            total = pool(total, weights, place, valid, row)
    keep(out, total, length, bag, column, bags, dim, MEAN)


# ---- gradients of the weights ----------------------------------------------------------------


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _hashed_dot(
    grad, ids, offsets, quotient_b, remainder_b, quotient_c, remainder_c, out, errors, bags, known,
    count, fixed, dim, seed: tl.int64, buckets: tl.int64, remainders: tl.int64,
    PREHASHED: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr, BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    tables, rule = (quotient_b, remainder_b, quotient_c, remainder_c), (seed, buckets, remainders)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        rows = rows_at(ids, place, valid, rule, PREHASHED, WHOLE)
        total = tl.zeros((BAGS, COLUMNS), COMPUTE)
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            row = _four(tables, rows, valid, column, dim, COMPUTE)
            total += row * gather(grad, bag, dim, valid, column, dim, COMPUTE)
        tl.store(out + place, tl.sum(total, 1), mask=valid)


# ---- launchers -----------------------------------------------------------------------------


def rule_of(a: Any, remainders: int) -> tuple:
    """The rule from an id to its rows, as the kernels take it."""
    return a.seed, a.num_buckets, remainders, a.prehashed, a.num_buckets == 1 << 32


def tables_of(a: Any) -> tuple[Tensor, ...]:
    return a.quotient_b, a.remainder_b, a.quotient_c, a.remainder_c


def _plan(bags: int, dim: int) -> tuple[int, dict[str, int]]:
    """Blocks of bags, and the constants of a kernel over tables of floats."""
    c = {"BAGS": 16 if columns(dim) <= 32 else 8, "COLUMNS": columns(dim), "num_warps": 4}
    return cdiv(bags, c["BAGS"]), c | REGISTERS


def hashed_embedding_bag(a) -> Tensor:
    """The op on a GPU; no scratch. ``sparse`` is about the gradients."""
    sizes, dim = shape(a.ids, a.offsets, a.include_last_offset), a.quotient_b.shape[1]
    ids, offsets, weights = contiguous(a.ids, a.offsets, a.per_sample_weights)
    tables = contiguous(*tables_of(a))
    out = a.quotient_b.new_empty((sizes[0], dim))
    blocks, c = _plan(sizes[0], dim)
    c["UNROLL"] = 2 if sizes[2] >= 2 * sizes[0] else 1
    grid = (blocks, cdiv(dim, c["COLUMNS"]))
    rule = rule_of(a, a.remainder_b.shape[0])
    args = (ids, offsets, *tables, weights, out, findings(out.device), *sizes, dim, *rule)
    launch(_hashed_bag, grid, *args, a.mode == "mean", compute_type(out), **c)
    return out


def hashed_embedding_bag_backward_weights(a) -> Tensor:
    """Gradient of per_sample_weights; zeros for ids in no bag. No scratch."""
    sizes, dim = shape(a.ids, a.offsets, a.include_last_offset), a.quotient_b.shape[1]
    grad, ids, offsets = contiguous(a.grad, a.ids, a.offsets)
    tables = contiguous(*tables_of(a))
    out = torch.zeros(ids.shape, dtype=wide(a.quotient_b), device=grad.device)
    blocks, c = _plan(sizes[0], dim)
    rule = rule_of(a, a.remainder_b.shape[0])
    args = (grad, ids, offsets, *tables, out, findings(out.device), *sizes, dim, *rule)
    launch(_hashed_dot, (blocks,), *args, compute_type(a.quotient_b), **c)
    return out
