"""x w^T or (x * factor) w^T onto a low rank in bfloat16, in one kernel that reads x once.

``_project`` takes ROWS rows a program and walks over their columns; a product with so few results
leaves most of a chip idle in cuBLAS, which cuts it in tiles of 64 or 128 rows. torch.mm is timed
beside it where it finds the same. The elementwise factor (backward: dt = grad * x0) never reaches
memory; it is rounded before the product, as eager does.

On sm_90 it lets the next kernel start early (programmatic dependent launch): that one asks for
its own inputs meanwhile, and waits only before it reads these results. What it reads first can be
brought to L2 here as well (``ahead``).

Not timed yet.

Bytes: (1 or 2) B d items, and r d of weights a program, from L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from .cross_tiles import ask, clipped, keep, padded
from .launch import (
    INTERPRETED,
    architecture,
    batch_class,
    cdiv,
    choose,
    dot,
    launch,
    rows,
    size_class,
)

MOST_RANKS = 128  # of a program; the ranks beyond are another program's


@triton.jit(do_not_specialize=["n"])
def _project(
    x, factor, weight, ahead, out, rest, n, d, r, x_row, factor_row, ahead_row, weight_row,
    weight_column,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr,
    TRIGGER: tl.constexpr,
):  # fmt: skip
    """h[i, j] = sum over k of x[i, k] factor[i, k] weight[j, k]; ``rest``: what ``out`` rounds off.

    ahead: (n, d), what the next kernel reads: asked for meanwhile.
    EVEN: d and r are whole tiles. Rows behind the last read the last one, and are not stored.
    """
    if TRIGGER:
        cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = tl.minimum(row, n - 1).to(tl.int64)
    rank = tl.program_id(1) * RANK + tl.arange(0, RANK)
    h = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        if ahead is not None:
            ask(ahead, known, start, ahead_row, d, COLUMNS)
        a = clipped(x, known, column, x_row, d, EVEN)
        if factor is not None:
            b = clipped(factor, known, column, factor_row, d, EVEN)
            a = (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype)
        at = weight + rank.to(tl.int64)[None, :] * weight_row
        at += column.to(tl.int64)[:, None] * weight_column
        if EVEN:
            w = tl.load(at)
        else:
            w = tl.load(at, mask=(column < d)[:, None] & (rank < r)[None, :], other=0)
        h = dot(a, w, h, "ieee")
    row, rank = row.to(tl.int64), rank.to(tl.int64)
    keep(out, h, row, rank, r, n, r)
    if rest is not None:
        h -= h.to(out.dtype.element_ty).to(tl.float32)
        keep(rest, h, row, rank, r, n, r)


# ---- launchers ---------------------------------------------------------------------------


def _tile_of(rows_: int, columns: int, warps: int, stages: int) -> dict[str, int]:
    return {"ROWS": rows_, "COLUMNS": columns, "num_warps": warps, "num_stages": stages}


_BFLOAT16 = (_tile_of(32, 64, 4, 3), _tile_of(16, 128, 4, 3))
_HOPPER = (_tile_of(32, 128, 8, 4), _tile_of(64, 64, 4, 4), _tile_of(32, 64, 4, 4))


def _plans(x: Tensor) -> tuple[dict[str, int], ...]:
    return _HOPPER if architecture(x) == 90 else _BFLOAT16


def early(t: Tensor) -> bool:
    """Whether a kernel on this tensor may start before the one in front of it has ended."""
    return architecture(t) == 90 and not INTERPRETED


def _rows(t: Tensor | None) -> Tensor | None:
    return None if t is None else rows(t)


def project(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    factor: Tensor | None = None,
    rest: Tensor | None = None,
    ahead: Tensor | None = None,
) -> bool:
    """(x * factor) weight^T into ``out``, what that rounds off into ``rest``.

    All are bfloat16. Returns whether the kernel that comes next may start early, see ``early``.
    """
    n, d, r = *x.shape, weight.shape[0]
    x, factor, ahead = rows(x), _rows(factor), _rows(ahead)
    ran = [True]

    def run(c):
        ran[0] = c is not None and early(x) and n > 0
        if c is None:
            torch.mm(x, weight.T, out=out)
            return
        rank = min(padded(r), MOST_RANKS)
        even = d % c["COLUMNS"] == 0 and r % rank == 0
        strides = [0 if t is None else t.stride(0) for t in (x, factor, ahead)]
        strides += weight.stride()
        args = (x, factor, weight, ahead, out, rest, n, d, r, *strides, rank)
        grid = (cdiv(n, c["ROWS"]), cdiv(r, rank))
        launch(_project, grid, *args, **c, EVEN=even, TRIGGER=early(x))

    kinds = (factor is None, rest is None, ahead is None, weight.stride(0) == 1)
    key = ("project", *kinds, padded(r), size_class(d), batch_class(n))
    plain = factor is None and rest is None
    plans = _plans(x)
    choose(key, (*plans, None) if plain else plans, run)
    return ran[0]
