"""Hashed embedding bags on GPUs: where nvcc was not there to build the CUDA kernels.

A program takes BAGS bags and COLUMNS columns and walks over their ids together, one of each bag
a step: hash, two divisions of 32 bits a half, four gathers of (BAGS, COLUMNS), so that 4 * BAGS
rows are under way at once. Hashes are computed again for every block of columns. Packed tables
are read as ``kernels/_rowwise.py`` says, BYTES bytes of codes a program. The gradients of weights
(``_hashed_dot``, ``_packed_dot``) take the same walk; those of the tables are sums over sorted
runs (``kernels/_runs.py``), and the sparse ones have to wait for the number of rows.

Bytes: an id reads 4 rows of D items, a bag writes D; the remainder tables (m rows) sit in L2, so
2 rows of D an id come from memory: 1M ids at D=64 in float32 are 512 MB, 153 us at 3.35 TB/s
(H100, datasheet).

Dropped: ids in tiles of one bag (half of the lanes idle where bags hold one id).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.library._old_checks import check
from lirank_ext.ops import _rowwise
from lirank_ext.ops._hashed_reference import (
    _check_backward,
    _check_grad,
    check_call,
    check_packed_call,
)

from ._bags import (
    REGISTERS,
    columns,
    contiguous,
    findings,
    keep,
    pool,
    shape,
    spans,
)
from ._launch import (
    cdiv,
    compute_type,
    launch,
    next_power_of_2,
)
from ._rowwise import (
    aligned,
    byte_block,
    even,
    form,
    keep_columns,
    load_codes,
    load_pair,
    odd,
    places,
)
from ._runs import LOWEST, sum_runs
from .hashing import murmur

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
def rows_at(
    ids, place, valid, seed, buckets, remainders, PREHASHED: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows of quotient_b, remainder_b, quotient_c, remainder_c of the ids at these places."""
    h = tl.load(ids + place, mask=valid, other=0)
    h = h.to(tl.uint64, bitcast=True) if PREHASHED else murmur(h, seed)
    low, high = (h & 0xFFFFFFFF).to(tl.uint32), (h >> 32).to(tl.uint32)
    qb, rb = bucket_rows(low, buckets, remainders, WHOLE)
    qc, rc = bucket_rows(high, buckets, remainders, WHOLE)
    return qb, rb, qc, rc


@triton.jit
def _gather(table, row, stride, valid, column, dim, COMPUTE: tl.constexpr):
    inside = valid[:, None] & (column < dim)[None, :]
    at = table + row[:, None] * stride + column[None, :]
    return tl.load(at, mask=inside, other=0).to(COMPUTE)


@triton.jit
def _four(
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    qb,
    rb,
    qc,
    rc,
    valid,
    column,
    dim,
    COMPUTE: tl.constexpr,
):
    """(ids, columns): the sum of the four rows of each id."""
    b = _gather(quotient_b, qb, dim, valid, column, dim, COMPUTE)
    b += _gather(remainder_b, rb, dim, valid, column, dim, COMPUTE)
    c = _gather(quotient_c, qc, dim, valid, column, dim, COMPUTE)
    c += _gather(remainder_c, rc, dim, valid, column, dim, COMPUTE)
    return b + c


# ---- look-ups ------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
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
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    total = tl.zeros((BAGS, COLUMNS), COMPUTE)
    for step in range(0, tl.max(length, 0), UNROLL):
        for ahead in tl.static_range(UNROLL):
            valid, place = step + ahead < length, begin + step + ahead
            qb, rb, qc, rc = rows_at(ids, place, valid, seed, buckets, remainders, PREHASHED,
                                     WHOLE)  # fmt: skip
            row = _four(quotient_b, remainder_b, quotient_c, remainder_c, qb, rb, qc, rc, valid,
                        column, dim, COMPUTE)  # fmt: skip
            total = pool(total, weights, place, valid, row, MEAN)
    keep(out, total, length, bag, column, bags, dim, MEAN)


@triton.jit
def _packed_row(table, row, valid, height, dim, byte, BITS: tl.constexpr):
    """Codes as stored, scale and mid of these rows of a packed table."""
    codes, stride, first, pair = places(0, dim, height, BITS)
    scale, mid = load_pair(table, first + row * pair, valid)
    return load_codes(table, row * stride, valid, byte, codes), scale, mid


@triton.jit
def _packed_four(
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    qb,
    rb,
    qc,
    rc,
    valid,
    quotients,
    remainders,
    dim,
    byte,
    BITS: tl.constexpr,
):
    """The sum of the four rows of each id, in even and odd columns (8 bits: all, and nothing)."""
    c0, s0, m0 = _packed_row(quotient_b, qb, valid, quotients, dim, byte, BITS)
    c1, s1, m1 = _packed_row(remainder_b, rb, valid, remainders, dim, byte, BITS)
    c2, s2, m2 = _packed_row(quotient_c, qc, valid, quotients, dim, byte, BITS)
    c3, s3, m3 = _packed_row(remainder_c, rc, valid, remainders, dim, byte, BITS)
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
    quotients: tl.int64,
    seed: tl.int64,
    buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr,
    WHOLE: tl.constexpr,
    MEAN: tl.constexpr,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    start = tl.program_id(1) * BYTES
    byte = start + tl.arange(0, BYTES)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    low, high = tl.zeros((BAGS, BYTES), tl.float32), tl.zeros((BAGS, BYTES), tl.float32)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        qb, rb, qc, rc = rows_at(ids, place, valid, seed, buckets, remainders, PREHASHED, WHOLE)
        a, b = _packed_four(quotient_b, remainder_b, quotient_c, remainder_c, qb, rb, qc, rc,
                            valid, quotients, remainders, dim, byte, BITS)  # fmt: skip
        low = pool(low, weights, place, valid, a, MEAN)
        if BITS == 4:
            high = pool(high, weights, place, valid, b, MEAN)
    if MEAN:
        share = 1.0 / tl.maximum(length, 1).to(tl.float32)[:, None]
        low, high = low * share, high * share
    keep_columns(out + bag * dim, low, high, bag < bags, start, dim, BITS, BYTES)


# ---- gradients of the weights ----------------------------------------------------------------


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _hashed_dot(
    grad,
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
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
    COMPUTE: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        qb, rb, qc, rc = rows_at(ids, place, valid, seed, buckets, remainders, PREHASHED, WHOLE)
        total = tl.zeros((BAGS, COLUMNS), COMPUTE)
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            row = _four(quotient_b, remainder_b, quotient_c, remainder_c, qb, rb, qc, rc, valid,
                        column, dim, COMPUTE)  # fmt: skip
            total += row * _gather(grad, bag, dim, valid, column, dim, COMPUTE)
        tl.store(out + place, tl.sum(total, 1), mask=valid)


@triton.jit(do_not_specialize=["bags", "known", "count", "fixed", "seed"])
def _packed_dot(
    grad,
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    out,
    errors,
    bags,
    known,
    count,
    fixed,
    dim,
    quotients: tl.int64,
    seed: tl.int64,
    buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr,
    WHOLE: tl.constexpr,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    codes, _, _ = form(dim, BITS)
    for step in range(0, tl.max(length, 0)):
        valid, place = step < length, begin + step
        qb, rb, qc, rc = rows_at(ids, place, valid, seed, buckets, remainders, PREHASHED, WHOLE)
        total = tl.zeros((BAGS, BYTES), tl.float32)
        for start in range(0, codes, BYTES):
            byte = start + tl.arange(0, BYTES)
            low, high = _packed_four(quotient_b, remainder_b, quotient_c, remainder_c, qb, rb, qc,
                                     rc, valid, quotients, remainders, dim, byte,
                                     BITS)  # fmt: skip
            if BITS == 8:
                total += low * _gather(grad, bag, dim, valid, byte, dim, tl.float32)
            else:
                total += low * _gather(grad, bag, dim, valid, 2 * byte, dim, tl.float32)
                total += high * _gather(grad, bag, dim, valid, 2 * byte + 1, dim, tl.float32)
        tl.store(out + place, tl.sum(total, 1), mask=valid)


# ---- gradients of the tables -----------------------------------------------------------------


@triton.jit(do_not_specialize=["bags", "known", "count", "seed"])
def _list_rows(
    ids,
    offsets,
    keys,
    bag_of,
    shares,
    errors,
    bags,
    known,
    count: tl.int64,
    seed: tl.int64,
    buckets: tl.int64,
    remainders: tl.int64,
    PREHASHED: tl.constexpr,
    WHOLE: tl.constexpr,
    BAGS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Keys of every id that is in a bag in the four tables, its bag, and its share of a mean."""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, 1)
    for start in range(0, tl.max(length, 0), STEPS):
        step = start + tl.arange(0, STEPS)
        valid, place = step[None, :] < length[:, None], begin[:, None] + step[None, :]
        qb, rb, qc, rc = rows_at(ids, place, valid, seed, buckets, remainders, PREHASHED, WHOLE)
        tl.store(keys + place, (qb - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + count + place, (rb - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + 2 * count + place, (qc - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + 3 * count + place, (rc - 2147483648).to(tl.int32), mask=valid)
        if bag_of is not None:
            tl.store(bag_of + place, (bag[:, None] + 0 * place).to(tl.int32), mask=valid)
        if shares is not None:
            one = tl.full((BAGS,), 1.0, shares.dtype.element_ty)
            share = one / tl.maximum(length, 1).to(shares.dtype.element_ty)
            tl.store(shares + place, share[:, None] + 0.0 * valid, mask=valid)


# ---- launchers -----------------------------------------------------------------------------


def _rule(num_buckets: int, num_remainders: int, seed: int, prehashed: bool) -> tuple:
    return seed, num_buckets, num_remainders, prehashed, num_buckets == 1 << 32


def _plan(bags: int, dim: int) -> tuple[int, dict[str, int]]:
    """Blocks of bags, and the constants of a kernel over tables of floats."""
    c = {"BAGS": 16 if columns(dim) <= 32 else 8, "COLUMNS": columns(dim), "num_warps": 4}
    return cdiv(bags, c["BAGS"]), c | REGISTERS


def _packed_plan(bags: int, dim: int, bits: int) -> tuple[int, int, dict[str, int]]:
    """Blocks of bags, blocks of bytes, and the constants of a kernel over packed tables."""
    codes = _rowwise.layout(dim, bits).code_bytes
    block = min(128, byte_block(codes))
    c = {"BAGS": min(32, 1024 // block), "BYTES": block}
    c |= {"num_warps": max(1, c["BAGS"] * block // 256)} | REGISTERS
    return cdiv(bags, c["BAGS"]), cdiv(codes, block), c


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
    ids, offsets, weights, *tables = contiguous(ids, offsets, weights, *tables)
    out = torch.empty((sizes[0], dim), dtype=quotient_b.dtype, device=quotient_b.device)
    blocks, c = _plan(sizes[0], dim)
    c["UNROLL"] = 2 if sizes[2] >= 2 * sizes[0] else 1
    grid = (blocks, cdiv(dim, c["COLUMNS"]))
    rule = _rule(num_buckets, remainder_b.shape[0], seed, prehashed)
    args = (ids, offsets, *tables, weights, out, findings(out.device), *sizes, dim, *rule)
    launch(_hashed_bag, grid, *args, mode == "mean", compute_type(quotient_b), **c)
    return out


def quantized_hashed_embedding_bag(
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    dim: int,
    bits: int = 8,
    seed: int = 0,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    prehashed: bool = False,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The op on a GPU; no scratch. A table that lies on an odd address is copied."""
    op, weights = "quantized_hashed_embedding_bag", per_sample_weights
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_packed_call(op, ids, offsets, tables, num_buckets, dim, bits, seed, mode, weights,
                      include_last_offset, output_dtype)  # fmt: skip
    sizes = shape(ids, offsets, include_last_offset)
    ids, offsets, weights = contiguous(ids, offsets, weights)
    out = torch.empty((sizes[0], dim), dtype=output_dtype, device=quotient_b.device)
    *grid, c = _packed_plan(sizes[0], dim, bits)
    rule = _rule(num_buckets, remainder_b.shape[0], seed, prehashed)
    args = (ids, offsets, *map(aligned, tables), weights, out, findings(out.device), *sizes, dim)
    args += (quotient_b.shape[0], *rule, mode == "mean", bits)
    launch(_packed_bag, tuple(grid), *args, **c)
    return out


def hashed_embedding_bag_backward_weights(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    seed: int,
    include_last_offset: bool,
    prehashed: bool,
) -> Tensor:
    """Gradient of per_sample_weights; zeros for ids in no bag. No scratch."""
    op = "hashed_embedding_bag_backward_weights"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_call(op, ids, offsets, tables, num_buckets, seed, "sum", None, include_last_offset)
    _check_grad(op, grad, ids, offsets, include_last_offset, quotient_b.shape[1])
    sizes, dim = shape(ids, offsets, include_last_offset), quotient_b.shape[1]
    grad, flat, offsets, *tables = contiguous(grad, ids, offsets, *tables)
    wide = torch.float64 if quotient_b.dtype == torch.float64 else torch.float32
    out = torch.zeros(ids.shape, dtype=wide, device=grad.device)
    blocks, c = _plan(sizes[0], dim)
    rule = _rule(num_buckets, remainder_b.shape[0], seed, prehashed)
    args = (grad, flat, offsets, *tables, out, findings(out.device), *sizes, dim, *rule)
    launch(_hashed_dot, (blocks,), *args, compute_type(quotient_b), **c)
    return out


def quantized_hashed_embedding_bag_backward(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    dim: int,
    bits: int,
    seed: int,
    include_last_offset: bool,
    prehashed: bool,
) -> Tensor:
    """Gradient of per_sample_weights over packed tables; zeros for ids in no bag."""
    op = "quantized_hashed_embedding_bag_backward"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_packed_call(op, ids, offsets, tables, num_buckets, dim, bits, seed, "sum", None,
                      include_last_offset, torch.float32)  # fmt: skip
    _check_grad(op, grad, ids, offsets, include_last_offset, dim)
    sizes = shape(ids, offsets, include_last_offset)
    grad, flat, offsets = contiguous(grad, ids, offsets)
    out = torch.zeros(ids.shape, dtype=torch.float32, device=grad.device)
    blocks, _, c = _packed_plan(sizes[0], dim, bits)
    rule = _rule(num_buckets, remainder_b.shape[0], seed, prehashed)
    args = (grad, flat, offsets, *map(aligned, tables), out, findings(out.device), *sizes, dim)
    launch(_packed_dot, (blocks,), *args, quotient_b.shape[0], *rule, bits, **c)
    return out


def _list(grad, ids, offsets, bags, mode, rule):
    """Keys (4, n) of every id, its bag (None without offsets), its share of a mean or None."""
    n, device = ids.numel(), grad.device
    if n >= 1 << 31 or bags >= 1 << 31:
        text = "fewer than 2^31 ids and bags in one backward"
        check(False, "hashed_embedding_bag_backward", "ids", text, n)
    bag_of, shares = None, None
    if offsets is None:  # the bag of an id follows from its place: n bags of one
        keys = torch.empty((4, n), dtype=torch.int32, device=device)
        bags, known, steps = n, 0, 1
    else:  # ids in no bag keep row 0, and add nothing to it
        keys = torch.full((4, n), LOWEST, dtype=torch.int32, device=device)
        bag_of = torch.full((n,), -1, dtype=torch.int32, device=device)
        known, steps = offsets.shape[0], min(16, next_power_of_2(max(1, n // max(1, bags))))
        if mode == "mean":
            wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
            shares = torch.empty(n, dtype=wide, device=device)
    c = {"BAGS": 256 // steps, "STEPS": steps, "num_warps": 4}
    args = (ids, offsets, keys, bag_of, shares, findings(device), bags, known, n, *rule)
    launch(_list_rows, (cdiv(bags, c["BAGS"]),), *args, **c)
    return keys, bag_of, shares


def hashed_embedding_bag_backward(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    num_buckets: int,
    num_remainders: int,
    seed: int,
    mode: str,
    include_last_offset: bool,
    prehashed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense gradients of the four tables.

    Scratch: what torch.sort takes (four times 32-bit keys, 64-bit positions), 20 bytes an id of
    rows and bags, and D / 8 items an id of sums across chunks.
    """
    op = "hashed_embedding_bag_backward"
    _check_backward(op, grad, ids, offsets, per_sample_weights, num_buckets, num_remainders, seed,
                    mode, include_last_offset)  # fmt: skip
    sizes, dim = shape(ids, offsets, include_last_offset), grad.shape[1]
    grad, ids, offsets, weights = contiguous(grad, ids, offsets, per_sample_weights)
    heights = (-(-num_buckets // num_remainders), num_remainders) * 2
    out = [torch.zeros((h, dim), dtype=grad.dtype, device=grad.device) for h in heights]
    if ids.numel() and dim:
        rule = _rule(num_buckets, num_remainders, seed, prehashed)
        keys, bag_of, shares = _list(grad, ids, offsets, sizes[0], mode, rule)
        keys, positions = torch.sort(keys, dim=1, stable=True)
        one = 1 / sizes[3] if mode == "mean" and offsets is None else 1.0
        each = weights if shares is None else shares
        sum_runs(grad, keys, positions, bag_of, each, (None, None), out, sizes[3], one)
    return tuple(out)


def hashed_embedding_bag_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    num_buckets: int,
    num_remainders: int,
    seed: int,
    mode: str,
    include_last_offset: bool,
    prehashed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(rows, values) of quotient_b, dense remainder_b; the same for c.

    How many rows there are is waited for, so this cannot be captured. Scratch: as the dense one,
    and 16 bytes an id of places.
    """
    op = "hashed_embedding_bag_backward_sparse"
    _check_backward(op, grad, ids, offsets, per_sample_weights, num_buckets, num_remainders, seed,
                    mode, include_last_offset)  # fmt: skip
    sizes, dim = shape(ids, offsets, include_last_offset), grad.shape[1]
    grad, ids, offsets, weights = contiguous(grad, ids, offsets, per_sample_weights)
    if include_last_offset:  # ids behind the last bag have no rows in the result
        used = min(max(int(offsets[-1]), 0), ids.numel())
        ids, weights = ids[:used], None if weights is None else weights[:used]
    rule = _rule(num_buckets, num_remainders, seed, prehashed)
    keys, bag_of, shares = _list(grad, ids, offsets, sizes[0], mode, rule)
    keys, positions = torch.sort(keys, dim=1, stable=True)
    b, slots_b = torch.unique_consecutive(keys[0], return_inverse=True)
    c, slots_c = torch.unique_consecutive(keys[2], return_inverse=True)
    heights = (b.numel(), num_remainders, c.numel(), num_remainders)
    out = [torch.zeros((h, dim), dtype=grad.dtype, device=grad.device) for h in heights]
    if ids.numel() and dim:
        one = 1 / sizes[3] if mode == "mean" and offsets is None else 1.0
        each = weights if shares is None else shares
        sum_runs(grad, keys, positions, bag_of, each, (slots_b, slots_c), out, sizes[3], one)
    return b.long() - LOWEST, out[0], out[1], c.long() - LOWEST, out[2], out[3]
