"""What the look-ups share: the span of a bag, and the report of what is wrong in the input.

Nothing on the host waits for a kernel, so bad offsets make an empty bag and a bad index reads
nothing and gives zeros; the first finding is kept and the rest are counted, in six int64 per
device, the layout of ``kernels/errors.cuh``. ``lirank_ext.check_errors()`` raises later.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import errors as kinds
from .errors import findings
from .launch import next_power_of_2

INDEX, OFFSETS = tl.constexpr(kinds.INDEX), tl.constexpr(kinds.OFFSETS)
TABLES, ROW = tl.constexpr(kinds.TABLES), tl.constexpr(kinds.ROW)
CODES, VOCABULARY = tl.constexpr(kinds.CODES), tl.constexpr(kinds.VOCABULARY)

# A limit far off: without one ptxas goes for 48 or 56 registers and spills two of them.
REGISTERS = {"maxnreg": 168}


@triton.jit
def report(errors, kind: tl.constexpr, bad, position, value, table, limit):
    """Count what is bad; keep the numbers of the first."""
    here = errors + position * 0
    first = bad & (tl.atomic_add(here, tl.full((), 1, tl.int64), mask=bad) == 0)
    tl.store(here + 1, kind, mask=first)
    tl.store(here + 2, position, mask=first)
    tl.store(here + 3, value, mask=first)
    tl.store(here + 4, table, mask=first)
    tl.store(here + 5, limit, mask=first)


@triton.jit
def spans(offsets, errors, bag, bags, known, count, fixed):
    """Begin and length of each bag; 0 where the offsets are wrong.

    offsets: None where every bag has ``fixed`` ids. known: number of offsets, ``bags`` of them
    or one more. count: ids there are.
    """
    if offsets is None:
        begin = bag * fixed
        end = begin + fixed
    else:
        begin = tl.load(offsets + bag, mask=bag < bags, other=0).to(tl.int64)
        last = bag + 1 >= known
        end = tl.load(offsets + bag + 1, mask=(bag < bags) & ~last, other=0).to(tl.int64)
        end = tl.where(last, count, end)
        bad = (begin < 0) | (end < begin) | (end > count) | ((bag == 0) & (begin != 0))
        bad = bad & (bag < bags)
        if tl.program_id(1) == 0:
            report(errors, OFFSETS, bad, bag, begin, end, count)
        end = tl.where(bad, begin, end)
    return begin, tl.where(bag < bags, end - begin, 0)


@triton.jit
def ids_at(ids, place, inside, rows):
    """Ids at these places, and which of them are rows."""
    row = tl.load(ids + place, mask=inside, other=0).to(tl.int64)
    return row, inside & (row >= 0) & (row < rows)


@triton.jit
def tell_ids(errors, ids, begin, length, rows, table, STEPS: tl.constexpr):
    """Report every id of these bags that is no row.

    A walk of its own before the pooling, for which it fetches the ids: reports among the loads of
    the pooling loop would keep the compiler from sending the next loads before the last have come.
    """
    for start in range(0, tl.max(length, 0), STEPS):
        step = start + tl.arange(0, STEPS)
        inside, place = step[None, :] < length[:, None], begin[:, None] + step[None, :]
        row, valid = ids_at(ids, place, inside, rows)
        report(errors, INDEX, inside & (valid == 0), place, row, table, rows)


@triton.jit
def pool(total, weights, place, valid, row):
    """total + the rows of one step, weighted where there are weights."""
    if weights is not None:
        weight = tl.load(weights + place, mask=valid, other=0).to(total.dtype)
        row = row * weight[:, None]
    return total + tl.where(valid[:, None], row, 0.0)


@triton.jit
def keep(out, total, length, bag, column, bags, dim, MEAN: tl.constexpr):
    if MEAN:
        total = total / tl.maximum(length, 1).to(total.dtype)[:, None]
    inside = (bag < bags)[:, None] & (column < dim)[None, :]
    at = out + bag[:, None] * dim + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


def shape(ids: Tensor, offsets: Tensor | None, include_last: bool) -> tuple[int, int, int, int]:
    """bags, known offsets, ids, ids per bag without offsets."""
    count = ids.numel()
    if offsets is not None:
        return offsets.shape[0] - int(include_last), offsets.shape[0], count, 0
    return ids.shape[0], 0, count, ids.shape[1] if ids.dim() == 2 else 1


def unroll(bags: int, count: int) -> int:
    """Steps whose loads are under way together: 1 where bags hold one id or few."""
    return 4 if count >= 4 * bags else 1


def columns(dim: int) -> int:
    return min(128, max(16, next_power_of_2(dim)))


def contiguous(*given: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in given]


__all__ = [
    "REGISTERS",
    "columns",
    "contiguous",
    "findings",
    "ids_at",
    "keep",
    "pool",
    "report",
    "shape",
    "spans",
    "tell_ids",
    "unroll",
]
