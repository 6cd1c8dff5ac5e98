"""Gradients of the weights of quantized look-ups on GPUs: <grad of the bag, row> of every id.

The walk is that of ``quantized_embedding.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import contiguous, findings, ids_at, shape, spans, tell_ids
from .launch import launch
from .quantized_embedding import find_table, plan
from .quantized_embedding_layout import aligned, even, form, load_codes, load_pair, odd, places


@triton.jit
def gradient_at(grad, column, valid, dim):
    """(bags, columns) of the gradient whose rows start at ``grad``, as float32."""
    inside = valid[:, None] & (column < dim)[None, :]
    return tl.load(grad[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)


@triton.jit
def sum_of_gradient(grad, valid, dim, BAGS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of all columns of each bag: what its mids are multiplied with."""
    total = tl.zeros((BAGS, COLUMNS), tl.float32)
    for start in range(0, dim, COLUMNS):
        total += gradient_at(grad, start + tl.arange(0, COLUMNS), valid, dim)
    return tl.sum(total, 1)


@triton.jit
def dot_codes(
    packed,
    at,
    valid,
    grad,
    here,
    dim,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """<gradient of the bag, codes of the row that starts at ``at``>."""
    codes, _, _ = form(dim, BITS)
    total = tl.zeros((BAGS, BYTES), tl.float32)
    for start in range(0, codes, BYTES):
        byte = start + tl.arange(0, BYTES)
        stored = load_codes(packed, at, valid, byte, codes)
        if BITS == 8:
            total += even(stored, BITS) * gradient_at(grad, byte, here, dim)
        else:
            total += even(stored, BITS) * gradient_at(grad, 2 * byte, here, dim)
            total += odd(stored) * gradient_at(grad, 2 * byte + 1, here, dim)
    return tl.sum(total, 1)


@triton.jit
def _dot_block(
    grad,
    packed,
    ids,
    offsets,
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
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One block of the bags of one table."""
    _, stride, first, pair = places(base, dim, rows, BITS)
    before = index * bags
    bag = block * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, before + bag, before + bags, known, count, fixed)
    tell_ids(errors, ids, begin, length, rows, index, 1)
    mine, here = grad + bag * width + column, bag < bags
    alone = sum_of_gradient(mine, here, dim, BAGS, BYTES)
    for step in range(0, tl.max(length, 0)):
        inside, place = step < length, begin + step
        row, valid = ids_at(ids, place, inside, rows)
        scale, mid = load_pair(packed, first + row * pair, valid)
        dot = dot_codes(packed, base + row * stride, valid, mine, here, dim, BITS, BAGS, BYTES)
        tl.store(out + place, tl.where(valid, scale * dot + mid * alone, 0.0), mask=inside)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_dot(
    grad,
    packed,
    rows,
    dims,
    ids,
    offsets,
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
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    program = tl.program_id(0)
    if rows is None:
        _dot_block(grad, packed, ids, offsets, out, errors, 0, program.to(tl.int64), 0, one_rows,
                   width, 0, width, bags, known, count, fixed, BITS, BAGS, BYTES)  # fmt: skip
    else:
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, base, n, dim, column = find_table(errors, rows, dims, tables, index, size, width,
                                                BITS)  # fmt: skip
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _dot_block(grad, packed, ids, offsets, out, errors, index, block, base, n, dim,
                           column, width, bags, known, count, fixed, BITS, BAGS,
                           BYTES)  # fmt: skip


# ---- launchers -----------------------------------------------------------------------------


def quantized_embedding_bag_backward(a) -> Tensor:
    """Gradient of per_sample_weights; zeros for ids in no bag. No scratch."""
    sizes = shape(a.indices, a.offsets, a.include_last_offset)
    packed, (grad, ids, offsets) = aligned(a.packed), contiguous(a.grad, a.indices, a.offsets)
    out = torch.zeros(ids.shape, dtype=torch.float32, device=packed.device)
    grid, each, c = plan(packed, sizes[0], 1, a.dim, a.bits)
    table = (each, 1, packed.numel(), a.dim, packed.shape[0])
    args = (grad, packed, None, None, ids, offsets, out, findings(out.device), *table, *sizes)
    launch(_quantized_dot, grid, *args, a.bits, **c)
    return out


def quantized_embedding_bags_backward(a) -> Tensor:
    """The same over several tables, in one launch."""
    rows, dims = contiguous(a.rows, a.dims)
    tables, known, count = rows.shape[0], a.offsets.shape[0], a.indices.numel()
    bags, width = (known - 1) // tables, a.grad.shape[-1]
    packed, (grad, ids, offsets) = aligned(a.packed), contiguous(a.grad, a.indices, a.offsets)
    out = torch.zeros(ids.shape, dtype=torch.float32, device=packed.device)
    grid, each, c = plan(packed, bags, tables, width, a.bits)
    sizes = (each, tables, packed.numel(), width, 0, bags, known, count, 0)
    args = (grad, packed, rows, dims, ids, offsets, out, findings(out.device), *sizes)
    launch(_quantized_dot, grid, *args, a.bits, **c)
    return out
