"""Gradients of the weights of quantized look-ups on GPUs: <grad of the bag, row> of every id.

The walk is that of ``quantized_embedding.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import contiguous, findings, ids_at
from .launch import launch
from .quantized_embedding_layout import even, form, load_codes, load_pair, odd, places
from .quantized_embedding_tables import bags_of, find_table, many_tables, one_table


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
def dot_codes(packed, at, valid, grad, here, dim, BITS: tl.constexpr, BYTES: tl.constexpr):
    """<gradient of the bag, codes of the row that starts at ``at``>."""
    codes, _, _ = form(dim, BITS)
    total = tl.zeros((at.shape[0], BYTES), tl.float32)
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
    grad, packed, given, out, table, block, width, sizes, BITS: tl.constexpr, BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    """One block of the bags of one table."""
    _, base, rows, dim, column = table
    _, stride, first, pair = places(base, dim, rows, BITS)
    bag, begin, length = bags_of(given, table, block, sizes, 1, BAGS)
    mine, here = grad + bag * width + column, bag < sizes[0]
    alone = sum_of_gradient(mine, here, dim, BAGS, BYTES)
    for step in range(0, tl.max(length, 0)):
        inside, place = step < length, begin + step
        row, valid = ids_at(given[0], place, inside, rows)
        scale, mid = load_pair(packed, first + row * pair, valid)
        dot = dot_codes(packed, base + row * stride, valid, mine, here, dim, BITS, BYTES)
        tl.store(out + place, tl.where(valid, scale * dot + mid * alone, 0.0), mask=inside)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_dot(
    grad, packed, rows, dims, ids, offsets, out, errors, each, tables, size: tl.int64, width,
    one_rows: tl.int64, bags, known, count, fixed,
    BITS: tl.constexpr, BAGS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    given, sizes = (ids, offsets, None, errors), (bags, known, count, fixed)
    if rows is None:
        table, block = (0, 0, one_rows, width, 0), program.to(tl.int64)
        _dot_block(grad, packed, given, out, table, block, width, sizes, BITS, BAGS, BYTES)
    else:
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, table = find_table(errors, rows, dims, tables, index, size, width, BITS)
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _dot_block(grad, packed, given, out, table, block, width, sizes, BITS, BAGS, BYTES)


# ---- launchers -----------------------------------------------------------------------------


def _gradient(a: Any, launched: tuple) -> Tensor:
    grid, c, tables, sizes = launched
    grad, ids, offsets = contiguous(a.grad, a.indices, a.offsets)
    out = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    args = (grad, *tables, ids, offsets, out, findings(out.device), *sizes, a.bits)
    launch(_quantized_dot, grid, *args, **c)
    return out


def quantized_embedding_bag_backward(a) -> Tensor:
    """Gradient of per_sample_weights; zeros for ids in no bag. No scratch."""
    return _gradient(a, one_table(a))


def quantized_embedding_bags_backward(a) -> Tensor:
    """The same over several tables, in one launch."""
    return _gradient(a, many_tables(a, a.grad.shape[-1]))
