"""Hashed tables moved by their gradients: the step of row-wise AdaGrad or of SGD.

The gradients of the rows are summed as for ``hashed_embedding_bag_backward``, but into scratch that
has a line for every id, so that nothing waits for the number of rows. ``_move_rows`` then moves the
row of each line. Lines that no row has are zeros, which move nothing. The CUDA kernel
(``hashed_embedding_update.cu``) keeps the sums in registers instead. This one is for installations
without it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import contiguous
from .hashed_embedding import tables_of
from .hashed_embedding_backward import sorted_runs
from .hashed_embedding_runs import LOWEST, row_of, sum_runs
from .launch import cdiv, compute_type, launch, next_power_of_2, wide


@triton.jit
def _gradient(values, table, line, row, wanted, column, dim, l2, COMPUTE: tl.constexpr,
              PENALTY: tl.constexpr):  # fmt: skip
    """Gradients of some columns of lines, with the penalty's share, and the rows' columns."""
    mask = column[None, :] < wanted[:, None]
    g = tl.load(values + line[:, None] * dim + column[None, :], mask=mask, other=0).to(COMPUTE)
    weight = tl.load(table + row[:, None] * dim + column[None, :], mask=mask, other=0).to(COMPUTE)
    there = tl.max((g != 0).to(tl.int32), 1)
    if PENALTY:
        g += tl.full((), l2, COMPUTE) * weight
    return g, weight, there


@triton.jit(do_not_specialize=["count"])
def _move_rows(
    values, keys, table, sums, lr, rate: tl.float64, l2: tl.float64, eps: tl.float64,
    count: tl.int64, dim,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, COMPUTE: tl.constexpr, PENALTY: tl.constexpr,
):  # fmt: skip
    """Rows of one table: line i is for row i, or for that of keys[i]."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    live = line < count
    row = line
    if keys is not None:
        row = row_of(tl.load(keys + line, mask=live, other=-2147483648))
    step = tl.zeros((LINES,), COMPUTE) + tl.full((), rate, COMPUTE)
    if lr is not None:
        step = tl.zeros((LINES,), COMPUTE) + tl.load(lr).to(COMPUTE)
    # Numbers of columns in place of masks: the interpreter cannot spread a bool over a block.
    wanted = tl.where(live, dim, 0)
    squares, moves = tl.zeros((LINES,), COMPUTE), tl.zeros((LINES,), tl.int32)
    for first in range(0, dim, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        g, _, there = _gradient(values, table, line, row, wanted, column, dim, l2, COMPUTE,
                                PENALTY)  # fmt: skip
        squares += tl.sum(g * g, 1)
        moves = tl.maximum(moves, there)
    moving = live & (moves > 0)
    if sums is not None:
        total = tl.load(sums + row, mask=moving, other=1) + squares / dim
        tl.store(sums + row, total, mask=moving)
        step = step / (tl.sqrt(total) + tl.full((), eps, COMPUTE))
    wanted = tl.where(moving, dim, 0)
    for first in range(0, dim, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        g, weight, _ = _gradient(values, table, line, row, wanted, column, dim, l2, COMPUTE,
                                 PENALTY)  # fmt: skip
        at = table + row[:, None] * dim + column[None, :]
        moved = weight - step[:, None] * g
        tl.store(at, moved.to(table.dtype.element_ty), mask=column[None, :] < wanted[:, None])


def _lines(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The line of each of the sorted keys, and the key of each line; row 0 where it has none."""
    changes = (keys[1:] != keys[:-1]).to(torch.int64)
    lines = torch.nn.functional.pad(changes.cumsum(0), (1, 0))
    return lines, torch.full_like(keys, LOWEST).scatter_(0, lines, keys)


def hashed_embedding_bag_update(a) -> None:
    """Move the rows of the four tables.

    Scratch: that of ``hashed_embedding_bag_backward``, and 2 D items and 24 bytes an id.
    """
    grad, ids, offsets, weights = contiguous(a.grad, a.ids, a.offsets, a.per_sample_weights)
    n, dim, remainders = ids.numel(), grad.shape[1], a.remainder_b.shape[0]
    if n == 0:
        return
    runs, shares = sorted_runs(a, ids, offsets, weights, remainders, a.mean)
    keys = runs[0]
    (lines_b, keys_b), (lines_c, keys_c) = _lines(keys[0]), _lines(keys[2])
    values = [grad.new_zeros((height, dim), dtype=wide(grad)) for height in (n, remainders) * 2]
    sum_runs(grad, *runs, (lines_b, lines_c), values, *shares)
    sums = (a.sum_quotient_b, a.sum_remainder_b, a.sum_quotient_c, a.sum_remainder_c)
    on_host = a.lr.device != grad.device
    lr, rate = (None, float(a.lr)) if on_host else (a.lr, 0.0)
    columns = min(128, next_power_of_2(dim))
    c = {"LINES": max(1, 512 // columns), "COLUMNS": columns, "PENALTY": a.l2 != 0}
    for value, key, table, total in zip(
        values, (keys_b, None, keys_c, None), tables_of(a), sums, strict=True
    ):
        grid = (cdiv(len(value), c["LINES"]),)
        args = (value, key, table, total, lr, rate, a.l2, a.eps, len(value), dim)
        launch(_move_rows, grid, *args, **c, COMPUTE=compute_type(grad), num_warps=4)
