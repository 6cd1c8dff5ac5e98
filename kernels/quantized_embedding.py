"""Look-ups in row-wise quantized tables on GPUs: where nvcc was not there for the CUDA kernels.

``_quantized_bags``: BAGS bags of one table and BYTES bytes of codes a program, one id of each bag
a step, UNROLL steps under way together. Rows are read as ``quantized_embedding_layout.py`` says,
and the sums of their columns stay in registers. Many tables are one launch: a program finds the
place of its table in ``rows`` and ``dims`` on the device, then takes every ``each``-th block of its
bags, so that the search is paid a few thousand times a launch, not once a block.

Bytes: a look-up reads code_bytes + 8, whole sectors of 32 bytes: 96 for D=64 at 8 bits; 1M of them
and 256 bytes written each are 352 MB, 105 us at 3.35 TB/s (H100, datasheet).

Dropped: descriptors of the tables in a workspace (an allocation and a launch more); a column a
lane (a byte a load, eight times the loads); reports of bad ids inside the pooling loop (atomics
there keep loads from moving up); a sum of the mids apart (Triton gives it a layout of its own and
loads every pair twice).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import (
    REGISTERS,
    TABLES,
    contiguous,
    findings,
    ids_at,
    report,
    shape,
    spans,
    tell_ids,
    unroll,
)
from .launch import cdiv, launch, multiprocessors
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
)

# ---- look-ups ------------------------------------------------------------------------------


@triton.jit
def find_table(errors, rows, dims, tables, index, size, width, BITS: tl.constexpr):
    """Whether rows and dims fit the tensor, and base, rows, dim and first column of this table."""
    tight = tl.zeros((128,), tl.int64)
    whole, before_tight, before_whole = tight, tight, tight
    total, column, wrong = tight, tight, tight
    for start in range(0, tables, 128):
        at = start + tl.arange(0, 128)
        n = tl.load(rows + at, mask=at < tables, other=0)
        dim = tl.load(dims + at, mask=at < tables, other=8)
        _, row_bytes, _ = form(dim, BITS)
        # Widths have 31 bits, so that columns are counted in 32.
        bad = (n < 0) | (n > size) | (dim <= 0) | (dim > width) | (dim > 2147483000)
        # Beyond 2^62 a product of 64 bits may have turned over: then this one is large.
        bad = bad | (n.to(tl.float32) * row_bytes.to(tl.float32) > 4.0e18)
        bad = (bad | (n * row_bytes > size)) & (at < tables)
        here = (at < tables) & (bad == 0)
        used = tl.where(here, n * row_bytes, 0)
        padded = (used + 63) // 64 * 64
        dim = tl.where(here, dim, 0)
        wrong += bad.to(tl.int64)
        tight += used
        whole += padded
        total += dim
        before_tight += tl.where(at < index, used, 0)
        before_whole += tl.where(at < index, padded, 0)
        column += tl.where(at < index, dim, 0)
    all_tight, all_whole, all_columns = tl.sum(tight, 0), tl.sum(whole, 0), tl.sum(total, 0)
    fits = (tl.sum(wrong, 0) == 0) & (all_columns == width)
    fits = fits & ((size == all_tight) | (size == all_whole))
    blame = (fits == 0) & (tl.program_id(0) == 0)
    report(errors, TABLES, blame, all_columns, width, all_tight, size)
    base = tl.where(size == all_whole, tl.sum(before_whole, 0), tl.sum(before_tight, 0))
    dim = tl.load(dims + index).to(tl.int32)
    return fits, base, tl.load(rows + index), dim, tl.sum(column, 0)


@triton.jit
def _pool(
    packed,
    ids,
    weights,
    begin,
    length,
    start,
    base,
    rows,
    dim,
    BITS: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Sums of the columns whose codes lie in the bytes from ``start`` on."""
    codes, stride, first, pair = places(base, dim, rows, BITS)
    byte = start + tl.arange(0, BYTES)
    low, high = tl.zeros((BAGS, BYTES), tl.float32), tl.zeros((BAGS, BYTES), tl.float32)
    for step in range(0, tl.max(length, 0), UNROLL):
        for ahead in tl.static_range(UNROLL):
            inside, place = step + ahead < length, begin + step + ahead
            row, valid = ids_at(ids, place, inside, rows)
            scale, mid = load_pair(packed, first + row * pair, valid)
            stored = load_codes(packed, base + row * stride, valid, byte, codes)
            if weights is not None:
                weight = tl.load(weights + place, mask=valid, other=0).to(tl.float32)
                scale, mid = scale * weight, mid * weight
            low += even(stored, BITS) * scale[:, None] + mid[:, None]
            if BITS == 4:
                high += odd(stored) * scale[:, None] + mid[:, None]
    return low, high


@triton.jit
def _pool_block(
    packed,
    ids,
    offsets,
    weights,
    out,
    errors,
    index,
    block,
    base,
    rows,
    dim,
    column,
    width,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One block of the bags of one table."""
    codes, _, _ = form(dim, BITS)
    before = index * bags
    bag = block * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, before + bag, before + bags, known, count, fixed)
    tell_ids(errors, ids, begin, length, rows, index, UNROLL)
    to = out + bag * width + column
    for start in range(0, codes, BYTES):
        low, high = _pool(packed, ids, weights, begin, length, start, base, rows, dim, BITS,
                          UNROLL, BAGS, BYTES)  # fmt: skip
        if MEAN:
            share = 1.0 / tl.maximum(length, 1).to(tl.float32)[:, None]
            low, high = low * share, high * share
        keep_columns(to, low, high, bag < bags, start, dim, BITS, BYTES)


@triton.jit
def _zero(out, n, BLOCK: tl.constexpr):
    """All programs together write zeros."""
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, jump):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.zeros((BLOCK,), out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_bags(
    packed,
    rows,
    dims,
    ids,
    offsets,
    weights,
    out,
    errors,
    each,
    tables,
    size: tl.int64,
    width,
    one_rows: tl.int64,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    program = tl.program_id(0)
    if rows is None:
        _pool_block(packed, ids, offsets, weights, out, errors, 0, program.to(tl.int64), 0,
                    one_rows, width, 0, width, bags, known, count, fixed, BITS, MEAN, UNROLL,
                    BAGS, BYTES)  # fmt: skip
    else:  # 32 bits are divided: 64 are a call
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, base, n, dim, column = find_table(errors, rows, dims, tables, index, size, width,
                                                BITS)  # fmt: skip
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _pool_block(packed, ids, offsets, weights, out, errors, index, block, base, n,
                            dim, column, width, bags, known, count, fixed, BITS, MEAN, UNROLL,
                            BAGS, BYTES)  # fmt: skip
        else:
            _zero(out, bags.to(tl.int64) * width, BAGS * BYTES)


# ---- launchers -----------------------------------------------------------------------------


def plan(packed: Tensor, bags: int, tables: int, width: int, bits: int):
    """Grid, programs a table, and constants for tables of about this width."""
    block = byte_block(code_bytes(max(1, width // tables), bits))
    c = {"BAGS": min(32, max(4, 1024 // block)), "BYTES": block}
    c |= {"num_warps": max(1, min(4, c["BAGS"] * block // 256))} | REGISTERS
    blocks = cdiv(bags, c["BAGS"])
    if tables == 1:
        each = blocks
    else:  # about 64 blocks of threads a multiprocessor: enough to even out long and short bags
        each = min(blocks, cdiv(64 * multiprocessors(packed), tables))
    return (each * tables,), each, c


def quantized_embedding_bag(a) -> Tensor:
    """The op on a GPU; no scratch. A table that lies on an odd address is copied."""
    sizes = shape(a.indices, a.offsets, a.include_last_offset)
    packed, given = aligned(a.packed), contiguous(a.indices, a.offsets, a.per_sample_weights)
    out = packed.new_empty((sizes[0], a.dim), dtype=a.output_dtype or torch.float32)
    grid, each, c = plan(packed, sizes[0], 1, a.dim, a.bits)
    table = (each, 1, packed.numel(), a.dim, packed.shape[0])
    args = (packed, None, None, *given, out, findings(out.device), *table, *sizes)
    constants = (a.bits, a.mode == "mean", unroll(sizes[0], sizes[2]))
    launch(_quantized_bags, grid, *args, *constants, **c)
    return out


def quantized_embedding_bags(a) -> Tensor:
    """The op on a GPU, all tables in one launch; no scratch.

    Without ``total_dim`` the width of the result has to be waited for; with it nothing waits, and
    rows and dims that do not fit are counted on the device, with zeros for a result.
    """
    rows, dims = contiguous(a.rows, a.dims)
    width = a.total_dim if a.total_dim >= 0 else _width(a)
    tables, known, count = rows.shape[0], a.offsets.shape[0], a.indices.numel()
    bags = (known - 1) // tables
    packed, given = aligned(a.packed), contiguous(a.indices, a.offsets, a.per_sample_weights)
    out = packed.new_empty((bags, width), dtype=a.output_dtype or torch.float32)
    grid, each, c = plan(packed, bags, tables, width, a.bits)
    sizes = (each, tables, packed.numel(), width, 0, bags, known, count, 0)
    args = (packed, rows, dims, *given, out, findings(out.device), *sizes)
    launch(_quantized_bags, grid, *args, a.bits, a.mode == "mean", unroll(known - 1, count), **c)
    return out


def _width(a: Any) -> int:
    dims = a.dims.tolist()
    bad = [dim for dim in dims if dim <= 0]
    if bad:
        text = f"argument 'dim': wanted a positive width, got {bad[0]}"
        raise ValueError(f"lirank::quantized_embedding_bags: {text}")
    return sum(dims)
