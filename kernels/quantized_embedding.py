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

from .bags import contiguous, findings, ids_at, shape, unroll
from .launch import launch
from .quantized_embedding_layout import (
    even,
    form,
    keep_columns,
    load_codes,
    load_pair,
    odd,
    places,
    pooled,
)
from .quantized_embedding_tables import bags_of, find_table, many_tables, one_table

# ---- look-ups ------------------------------------------------------------------------------


@triton.jit
def _pool(
    packed,
    ids,
    weights,
    begin,
    length,
    start,
    table,
    BITS: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Sums of the columns whose codes lie in the bytes from ``start`` on."""
    _, base, rows, dim, _ = table
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
    given,
    out,
    table,
    block,
    width,
    sizes,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One block of the bags of one table."""
    _, _, _, dim, column = table
    codes, _, _ = form(dim, BITS)
    bag, begin, length = bags_of(given, table, block, sizes, UNROLL, BAGS)
    to = out + bag * width + column
    for start in range(0, codes, BYTES):
        low, high = _pool(
            packed, given[0], given[2], begin, length, start, table, BITS, UNROLL, BAGS, BYTES
        )
        low, high = pooled(low, high, length, MEAN)
        keep_columns(to, low, high, bag < sizes[0], start, dim, BITS, BYTES)


@triton.jit
def _zero(out, n, BLOCK: tl.constexpr):
    """All programs together write zeros."""
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, jump):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.zeros((BLOCK,), out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_bags(
    packed, rows, dims, ids, offsets, weights, out, errors, each, tables, size: tl.int64, width,
    one_rows: tl.int64, bags, known, count, fixed,
    BITS: tl.constexpr, MEAN: tl.constexpr, UNROLL: tl.constexpr, BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    given, sizes = (ids, offsets, weights, errors), (bags, known, count, fixed)
    if rows is None:
        table, block = (0, 0, one_rows, width, 0), program.to(tl.int64)
        _pool_block(packed, given, out, table, block, width, sizes, BITS, MEAN, UNROLL, BAGS, BYTES)
    else:  # 32 bits are divided: 64 are a call
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, table = find_table(errors, rows, dims, tables, index, size, width, BITS)
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _pool_block(
                    packed, given, out, table, block, width, sizes, BITS, MEAN, UNROLL, BAGS, BYTES
                )
        else:
            _zero(out, bags.to(tl.int64) * width, BAGS * BYTES)


# ---- launchers -----------------------------------------------------------------------------


def _look_up(a: Any, width: int, bags: int, ends: int, launched: tuple) -> Tensor:
    """Pool into (bags, width) what ``ends`` bags hold together."""
    grid, c, tables, sizes = launched
    out = tables[0].new_empty((bags, width), dtype=a.output_dtype or torch.float32)
    given = contiguous(a.indices, a.offsets, a.per_sample_weights)
    constants = (a.bits, a.mode == "mean", unroll(ends, a.indices.numel()))
    launch(_quantized_bags, grid, *tables, *given, out, findings(out.device), *sizes, *constants,
           **c)  # fmt: skip
    return out


def quantized_embedding_bag(a) -> Tensor:
    """The op on a GPU; no scratch. A table that lies on an odd address is copied."""
    bags, *_ = shape(a.indices, a.offsets, a.include_last_offset)
    return _look_up(a, a.dim, bags, bags, one_table(a))


def quantized_embedding_bags(a) -> Tensor:
    """The op on a GPU, all tables in one launch; no scratch.

    Without ``total_dim`` the width of the result has to be waited for; with it nothing waits, and
    rows and dims that do not fit are counted on the device, with zeros for a result.
    """
    width, ends = a.total_dim if a.total_dim >= 0 else _width(a), a.offsets.shape[0] - 1
    return _look_up(a, width, ends // a.rows.shape[0], ends, many_tables(a, width))


def _width(a: Any) -> int:
    dims = a.dims.tolist()
    bad = [dim for dim in dims if dim <= 0]
    if bad:
        text = f"argument 'dim': wanted a positive width, got {bad[0]}"
        raise ValueError(f"lirank::quantized_embedding_bags: {text}")
    return sum(dims)
