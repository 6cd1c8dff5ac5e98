"""Hashed embedding bags on GPUs: where nvcc was not there to build the CUDA kernels.

A program takes BAGS bags and COLUMNS columns and walks over their ids together, one of each bag
a step: hash, two divisions of 32 bits a half, four gathers of (BAGS, COLUMNS), so that 4 * BAGS
rows are under way at once. Hashes are computed again for every block of columns.

Bytes: an id reads 4 rows of D items, a bag writes D; the remainder tables (m rows) sit in L2, so
2 rows of D an id come from memory: 1M ids at D=64 in float32 are 512 MB, 153 us at 3.35 TB/s
(H100, datasheet). The gradients are made by the definition in torch.

Dropped: ids in tiles of one bag (half of the lanes idle where bags hold one id).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.ops._hashed_reference import check_call

from ._bags import columns, findings, keep, pool, shape, spans
from ._launch import compute_type, launch
from .hashing import murmur


@triton.jit
def bucket_rows(half, buckets, remainders, WHOLE: tl.constexpr):
    """Quotient and remainder rows of a 32-bit half of the hash."""
    bucket = half
    if not WHOLE:  # 2^32 buckets need no remainder, and have none in 32 bits
        bucket = half % buckets.to(tl.uint32)
    m = remainders.to(tl.uint32)
    return (bucket // m).to(tl.int64), (bucket % m).to(tl.int64)


@triton.jit
def _gather(table, row, stride, valid, column, dim, COMPUTE: tl.constexpr):
    inside = valid[:, None] & (column < dim)[None, :]
    at = table + row[:, None] * stride + column[None, :]
    return tl.load(at, mask=inside, other=0).to(COMPUTE)


@triton.jit(do_not_specialize=["bags", "known", "count", "seed"])
def _hashed_bag(
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    weights,
    out,
    errors,
    bags,
    known,
    count,
    fixed,
    dim,
    seed: tl.int64,
    buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr,
    WHOLE: tl.constexpr,
    MEAN: tl.constexpr,
    COMPUTE: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    total = tl.zeros((BAGS, COLUMNS), COMPUTE)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        h = tl.load(ids + place, mask=valid, other=0)
        h = h.to(tl.uint64, bitcast=True) if PREHASHED else murmur(h, seed)
        low, high = (h & 0xFFFFFFFF).to(tl.uint32), (h >> 32).to(tl.uint32)
        quotient, remainder = bucket_rows(low, buckets, remainders, WHOLE)
        row = _gather(quotient_b, quotient, dim, valid, column, dim, COMPUTE)
        row += _gather(remainder_b, remainder, dim, valid, column, dim, COMPUTE)
        quotient, remainder = bucket_rows(high, buckets, remainders, WHOLE)
        row += _gather(quotient_c, quotient, dim, valid, column, dim, COMPUTE)
        row += _gather(remainder_c, remainder, dim, valid, column, dim, COMPUTE)
        total = pool(total, weights, place, valid, row, MEAN)
    keep(out, total, length, bag, column, bags, dim, MEAN)


def hashed_embedding_bag(
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    seed: int = 0,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    prehashed: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The op on a GPU; no scratch. ``sparse`` is about the gradients."""
    op, weights = "hashed_embedding_bag", per_sample_weights
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_call(op, ids, offsets, tables, num_buckets, seed, mode, weights, include_last_offset)
    sizes, dim = shape(ids, offsets, include_last_offset), quotient_b.shape[1]
    tables = tuple(t.contiguous() for t in tables)
    ids, offsets, weights = (None if t is None else t.contiguous() for t in (ids, offsets, weights))
    out = torch.empty((sizes[0], dim), dtype=quotient_b.dtype, device=quotient_b.device)
    rule = (seed, num_buckets, remainder_b.shape[0], prehashed, num_buckets == 1 << 32)
    c = {"BAGS": 16 if columns(dim) <= 32 else 8, "COLUMNS": columns(dim), "num_warps": 4}
    grid = (triton.cdiv(sizes[0], c["BAGS"]), triton.cdiv(dim, c["COLUMNS"]))
    args = (ids, offsets, *tables, weights, out, findings(out.device), *sizes, dim, *rule)
    launch(_hashed_bag, grid, *args, mode == "mean", compute_type(quotient_b), **c)
    return out
