"""Gradients of table rows by sorting: the same bits on every run, no atomics.

The ids are sorted by the row they read (stable, so that positions rise within a row) and each run
of one row is summed. ``_sum_runs``: one warp and CHUNK sorted entries a program, four entries'
loads under way together; a run that ends inside its chunk is written at once. The parts of a run
that crosses chunks go to ``partials`` (first: of the run that was there before, second: of the run
that goes on), and ``_join_runs`` adds those up, 32 at a time in a fixed tree, so that one row that
takes a third of a million ids is 5,000 parts and not a queue of atomics. All four tables of a
hashed embedding are one launch of each kernel.

Bytes an id and table: the sort (4 passes over 12 bytes), 24 of entry, the gradient of its bag from
L2: 1M ids at D=64 in float32 are 4 * 256 MB from L2, 0.2 ms at 5.5 TB/s (H100), beside the sorts.

Dropped: runs as a product with a 0/1 matrix (a NaN in one gradient would reach other rows); an
associative scan (log CHUNK steps of shuffles for what a register adds); one sort of
(table, row) in 64 bits (twice the passes).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch, next_power_of_2, wide

CHUNK = 64  # sorted entries a program sums
LOWEST = -(1 << 31)  # the key of row 0: rows have 32 bits, keys are sorted as signed numbers


@triton.jit
def row_of(key):
    return key.to(tl.int64) + 2147483648


@triton.jit
def _chosen(table, a, b, c, d):
    found = a
    if table == 1:
        found = b
    if table == 2:
        found = c
    if table == 3:
        found = d
    return found


@triton.jit
def _entry(entries, i, end, n, fixed, column, dim, COMPUTE: tl.constexpr):
    """Key of sorted entry i, whether the next has it too, and what its id adds."""
    grad, keys, positions, bag_of, weights = entries
    live = i < end
    key = tl.load(keys + i, mask=live, other=0)
    after = tl.load(keys + i + 1, mask=live & (i + 1 < n), other=0)
    position = tl.load(positions + i, mask=live, other=0)
    if bag_of is None:
        bag = (position.to(tl.int32) // fixed).to(tl.int64)  # to divide 64 bits is a call
    else:
        bag = tl.load(bag_of + position, mask=live, other=-1).to(tl.int64)
    # One number says how many columns: the interpreter cannot spread a bool over a block.
    wanted = tl.where(live & (bag >= 0), dim, 0)
    value = tl.load(grad + bag * dim + column, mask=column < wanted, other=0).to(COMPUTE)
    if weights is not None:
        value *= tl.load(weights + position, mask=live & (bag >= 0), other=0).to(COMPUTE)
    return key, (i + 1 < n) & (after == key), value


@triton.jit
def _close(sums, value, out, parts, slots, key, goes_on, i, end, column, dim):
    """Add an entry; write the sum where its run, or the chunk, ends with it, then begin anew.

    sums: the sum, and whether its run began before this chunk.
    """
    total, before = sums[0] + value, sums[1]
    stop = (i < end) & ((goes_on == 0) | (i + 1 == end))
    crosses = before | goes_on
    row = row_of(key)
    if slots is not None:
        row = tl.load(slots + i, mask=stop & (crosses == 0), other=0)
    at = out + row * dim + column
    wanted = tl.where(stop & (crosses == 0), dim, 0)
    tl.store(at, total.to(out.dtype.element_ty), mask=column < wanted)
    side, wanted = tl.where(before, 0, dim), tl.where(stop & crosses, dim, 0)
    tl.store(parts + side + column, total, mask=column < wanted)
    return tl.where(stop, 0.0, total), before & (stop == 0)


@triton.jit
def _sum_table(
    entries, slots, out, parts, n, fixed, dim, share, CHUNK: tl.constexpr, COLUMNS: tl.constexpr
):
    """entries: grad, keys, positions, bag_of and weights of one table."""
    COMPUTE: tl.constexpr = parts.dtype.element_ty
    keys = entries[1]
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, n)
    earlier = tl.load(keys + begin - 1, mask=begin > 0, other=0)
    before = (begin > 0) & (earlier == tl.load(keys + begin))
    sums, one = (tl.zeros((COLUMNS,), COMPUTE), before), tl.full((), share, COMPUTE)
    parts += chunk * 2 * dim
    for step in range(0, end - begin, 4):
        i = begin + step
        k0, g0, v0 = _entry(entries, i, end, n, fixed, column, dim, COMPUTE)
        k1, g1, v1 = _entry(entries, i + 1, end, n, fixed, column, dim, COMPUTE)
        k2, g2, v2 = _entry(entries, i + 2, end, n, fixed, column, dim, COMPUTE)
        k3, g3, v3 = _entry(entries, i + 3, end, n, fixed, column, dim, COMPUTE)
        sums = _close(sums, v0 * one, out, parts, slots, k0, g0, i, end, column, dim)
        sums = _close(sums, v1 * one, out, parts, slots, k1, g1, i + 1, end, column, dim)
        sums = _close(sums, v2 * one, out, parts, slots, k2, g2, i + 2, end, column, dim)
        sums = _close(sums, v3 * one, out, parts, slots, k3, g3, i + 3, end, column, dim)


@triton.jit(do_not_specialize=["n", "fixed"])
def _sum_runs(
    grad, keys, positions, bag_of, weights, slots_b, slots_c, quotient_b, remainder_b, quotient_c,
    remainder_c, partials, n: tl.int64, fixed, dim, share: tl.float64,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    table = tl.program_id(2).to(tl.int64)
    keys += table * n
    positions += table * n
    parts = partials + table * tl.cdiv(n, CHUNK) * 2 * dim
    entries = (grad, keys, positions, bag_of, weights)
    if slots_b is None:
        out = _chosen(table, quotient_b, remainder_b, quotient_c, remainder_c)
        _sum_table(entries, None, out, parts, n, fixed, dim, share, CHUNK, COLUMNS)
    elif table % 2 == 1:
        out = _chosen(table, remainder_b, remainder_b, remainder_c, remainder_c)
        _sum_table(entries, None, out, parts, n, fixed, dim, share, CHUNK, COLUMNS)
    else:
        out = _chosen(table, quotient_b, quotient_b, quotient_c, quotient_c)
        slots = _chosen(table, slots_b, slots_b, slots_c, slots_c)
        _sum_table(entries, slots, out, parts, n, fixed, dim, share, CHUNK, COLUMNS)


@triton.jit(do_not_specialize=["n"])
def _join_runs(
    keys, slots_b, slots_c, quotient_b, remainder_b, quotient_c, remainder_c, partials,
    n: tl.int64, dim,
    CHUNK: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The program of the chunk in which a run starts that goes on adds up the run's parts."""
    table = tl.program_id(2).to(tl.int64)
    keys += table * n
    partials += table * tl.cdiv(n, CHUNK) * 2 * dim
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, after = chunk * CHUNK, (chunk + 1) * CHUNK
    key = tl.load(keys + after - 1, mask=after < n, other=0)
    goes_on = (after < n) & (tl.load(keys + after, mask=after < n, other=0) == key)
    whole = tl.load(keys + begin) == key
    earlier = tl.load(keys + begin - 1, mask=begin > 0, other=0)
    if goes_on & ((whole & (begin > 0) & (earlier == key)) == 0):
        own = partials + (chunk * 2 + 1) * dim + column
        total = tl.load(own, mask=column < dim, other=0)
        first, more = chunk + 1, 1
        while more > 0:
            part = first + tl.arange(0, PARTS)
            there = part * CHUNK < n
            mine = there & (tl.load(keys + part * CHUNK, mask=there, other=0) == key)
            at = partials + part[:, None] * 2 * dim + column[None, :]
            found = tl.load(at, mask=mine[:, None] & (column < dim)[None, :], other=0)
            total += tl.sum(found, 0)
            more = tl.min(mine.to(tl.int32), 0)
            first += PARTS
        row = row_of(key)
        if slots_b is not None:
            if table == 0:
                row = tl.load(slots_b + after - 1)
            if table == 2:
                row = tl.load(slots_c + after - 1)
        out = _chosen(table, quotient_b, remainder_b, quotient_c, remainder_c)
        at = out + row * dim + column
        tl.store(at, total.to(out.dtype.element_ty), mask=column < dim)


def sum_runs(
    grad: Tensor,
    keys: Tensor,
    positions: Tensor,
    bag_of: Tensor | None,
    weights: Tensor | None,
    slots: tuple[Tensor | None, Tensor | None],
    out: list[Tensor],
    fixed: int,
    share: float,
) -> None:
    """Add the gradients of the bags up into the rows of four tables.

    Args:
        grad: (bags, D), contiguous.
        keys, positions: (4, n), of each table: sorted keys (row - 2^31), and the ids they are of.
        bag_of: int32 (n,), the bag of each id, -1 where it is in none; None: id // ``fixed``.
        weights: (n,), of each id; None: 1.
        slots: (n,) of tables 0 and 2: where in ``out`` a sorted entry's row is; None: at the row.
        out: the four gradients, zeros where a row is hit by no id.
        share: multiplies every gradient.
    """
    n, dim = keys.shape[1], grad.shape[1]
    chunks = cdiv(n, CHUNK)
    partials = torch.empty((4, chunks, 2, dim), dtype=wide(grad), device=grad.device)
    columns = min(128, max(32, next_power_of_2(dim)))
    grid = (chunks, cdiv(dim, columns), 4)
    c = {"CHUNK": CHUNK, "COLUMNS": columns}
    args = (grad, keys, positions, bag_of, weights, *slots, *out, partials, n, fixed, dim, share)
    launch(_sum_runs, grid, *args, **c, num_warps=1)
    args = (keys, *slots, *out, partials, n, dim)
    launch(_join_runs, grid, *args, PARTS=32, **c, num_warps=4)
