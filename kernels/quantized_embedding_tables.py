"""What look-ups in row-wise quantized tables and their gradients share: tables, bags, launches."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .bags import REGISTERS, TABLES, contiguous, report, shape, spans, tell_ids
from .launch import cdiv, multiprocessors
from .quantized_embedding_layout import aligned, byte_block, code_bytes, form


@triton.jit
def find_table(errors, rows, dims, tables, index, size, width, BITS: tl.constexpr):
    """Whether rows and dims fit the tensor, and number, base, rows, dim and first column of it."""
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
    return fits, (index, base, tl.load(rows + index), dim, tl.sum(column, 0))


@triton.jit
def bags_of(given, table, block, sizes, STEPS: tl.constexpr, BAGS: tl.constexpr):
    """One block of the bags of one table: numbers, begins and lengths. Ids out of range are told.

    given: ids, offsets, weights and errors. table: see ``find_table``. sizes: see ``spans``.
    """
    ids, offsets, _, errors = given
    index, _, rows, _, _ = table
    bags, known, count, fixed = sizes
    before = index * bags
    bag = block * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, before + bag, before + bags, known, count, fixed)
    tell_ids(errors, ids, begin, length, rows, index, STEPS)
    return bag, begin, length


# ---- launches ------------------------------------------------------------------------------


def _plan(packed: Tensor, bags: int, tables: int, width: int, bits: int):
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


def one_table(a: Any) -> tuple:
    """Grid, constants, and what the kernels take of one table: the table, then all sizes."""
    sizes, packed = shape(a.indices, a.offsets, a.include_last_offset), aligned(a.packed)
    grid, each, c = _plan(packed, sizes[0], 1, a.dim, a.bits)
    table = (each, 1, packed.numel(), a.dim, packed.shape[0])
    return grid, c, (packed, None, None), (*table, *sizes)


def many_tables(a: Any, width: int) -> tuple:
    """The same of several tables whose results have so many columns together."""
    packed, (rows, dims) = aligned(a.packed), contiguous(a.rows, a.dims)
    tables, known, count = rows.shape[0], a.offsets.shape[0], a.indices.numel()
    bags = (known - 1) // tables
    grid, each, c = _plan(packed, bags, tables, width, a.bits)
    sizes = (each, tables, packed.numel(), width, 0, bags, known, count, 0)
    return grid, c, (packed, rows, dims), sizes
