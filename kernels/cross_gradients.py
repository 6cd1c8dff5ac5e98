"""Backward of a low-rank cross layer in three kernels, for ranks up to 128.

1. ``cross_project._project``: dh = (grad * x0) u.
2. ``_gradients``: a program owns COLUMNS columns and walks over its share of the batch. It has u^T
   and v of its columns on chip, reads grad, x0, x, h and dh, and writes dx0 = grad * (h u^T + bias)
   and dx = grad + dh v. What dt = grad * x0 adds to du = dt^T h and to the sum of dt, and x to
   dv = dh^T x, stays in its accumulators: dt never reaches memory.
3. ``_add_parts`` adds the shares of the batch in a fixed order.

In bfloat16, dh and dt are rounded before a product, as eager does; else both are float32.
The second and third kernel start early, see ``cross_project``.

Bytes: reads grad and x0 twice, the second time mostly from L2, and x once; writes 2 B d items. The
parts are 8 r d bytes a share, and no more shares than fill the chip once or twice.

Not timed yet. Plain products take twelve kernels for what is three here.

Dropped: atomics for the weight gradients (sums differ from run to run); a sum of dt in registers
over all steps (32 more a thread, spilled).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from .cross_project import project
from .cross_tiles import keep, padded, precision, product, tile, turned
from .launch import architecture, cdiv, launch, multiprocessors


@triton.jit(do_not_specialize=["n", "share"])
def _gradients(
    grad, x0, x, v, u, bias, hidden, dh, dx0, dx, parts, n, d, r, share, grad_row, x0_row, x_row,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """Rows [share * program, share * (program + 1)); share is a multiple of ROWS.

    parts: (programs, r * d for dv, d * r for du, d for the sum of dt), float32.
    """
    if WAIT:
        cuda.gdc_launch_dependents()
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    rank = tl.arange(0, RANK).to(tl.int64)
    up, down = turned(u, rank, column, r, r, d), tile(v, rank, column, d, r, d)
    shift = tl.zeros((COLUMNS,), tl.float32)
    if bias is not None:
        shift = tl.load(bias + column, mask=column < d, other=0).to(tl.float32)
    if WAIT:
        cuda.gdc_wait()
    dv = tl.zeros((RANK, COLUMNS), tl.float32)
    du = tl.zeros((COLUMNS, RANK), tl.float32)
    db = tl.zeros((COLUMNS,), tl.float32)
    first = tl.program_id(1) * share
    row = (first + tl.arange(0, ROWS)).to(tl.int64)
    following = tile(grad, row, column, grad_row, n, d)
    for start in range(first, tl.minimum(first + share, n), ROWS):
        row, g = (start + tl.arange(0, ROWS)).to(tl.int64), following
        following = tile(grad, row + ROWS, column, grad_row, n, d)
        dt = g.to(tl.float32) * tile(x0, row, column, x0_row, n, d).to(tl.float32)
        h, e = tile(hidden, row, rank, r, n, r), tile(dh, row, rank, r, n, r)
        a = tile(x, row, column, x_row, n, d)
        db += tl.sum(dt, 0)
        du = product(tl.trans(dt.to(u.dtype.element_ty)), h, du, PRECISION)
        dv = product(tl.trans(e), a, dv, PRECISION)
        t = product(h, up, tl.zeros((ROWS, COLUMNS), tl.float32), PRECISION) + shift[None, :]
        keep(dx0, g.to(tl.float32) * t, row, column, d, n, d)
        t = product(e, down, g.to(tl.float32), PRECISION)
        keep(dx, t, row, column, d, n, d)
    mine = parts + tl.program_id(1).to(tl.int64) * (2 * r + 1) * d
    keep(mine, dv, rank, column, d, r, d)
    mine += r * d
    keep(mine, du, column, rank, r, d, r)
    tl.store(mine + r * d + column, db, mask=column < d)


@triton.jit(do_not_specialize=["count"])
def _add_parts(
    parts,
    dv,
    du,
    db,
    count,
    d,
    size,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
    WAIT: tl.constexpr,
):
    """The sum of all parts, see ``_gradients``; size: r * d."""
    if WAIT:
        cuda.gdc_wait()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total_size = 2 * size + d
    known = at < total_size
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, AT_ONCE):
        part = first + tl.arange(0, AT_ONCE)
        inside = (part < count)[:, None] & known[None, :]
        several = parts + part[:, None] * total_size + at[None, :]
        total += tl.sum(tl.load(several, mask=inside, other=0), 0)
    tl.store(dv + at, total.to(dv.dtype.element_ty), mask=at < size)
    tl.store(du + at - size, total.to(du.dtype.element_ty), mask=(at >= size) & (at < 2 * size))
    tl.store(db + at - 2 * size, total.to(db.dtype.element_ty), mask=known & (at >= 2 * size))


# ---- launchers ---------------------------------------------------------------------------


def _tile_of(rows_: int, columns: int, warps: int, stages: int = 2) -> dict[str, int]:
    return {"ROWS": rows_, "COLUMNS": columns, "num_warps": warps, "num_stages": stages}


# By the padded rank up to which they serve.
_BFLOAT16 = {
    64: (_tile_of(32, 64, 8), _tile_of(16, 64, 8)),
    128: (_tile_of(16, 64, 8), _tile_of(16, 32, 8)),
}
_HOPPER = {
    64: (_tile_of(64, 64, 8), _tile_of(64, 64, 4)),
    128: (_tile_of(64, 64, 8),),
}


def tiles(x: Tensor, rank: int) -> tuple[dict[str, int], ...]:
    """For bfloat16 and a padded rank of at most 128."""
    table = _HOPPER if architecture(x) == 90 else _BFLOAT16
    return next(tiles_ for largest, tiles_ in table.items() if rank <= largest)


def gradients(c: dict[str, int], grad, x0, x, v, u, bias, hidden) -> tuple[Tensor, ...]:
    """All gradients, with the tiles ``c``; x v^T is computed where ``hidden`` is None."""
    n, d, r = *x.shape, u.shape[1]
    if hidden is None:
        hidden = x.new_empty(n, r)
        project(x, v, hidden)
    passes, hidden, dh = precision(), hidden.contiguous(), x.new_empty(n, r)
    early = project(grad, u.T, dh, factor=x0, ahead=x)
    across, steps = cdiv(d, c["COLUMNS"]), cdiv(n, c["ROWS"])
    most = max(1, (8 // c["num_warps"]) * multiprocessors(x) // across)
    share = cdiv(steps, most) * c["ROWS"]
    count = cdiv(n, max(share, 1))
    dx0, dx = x.new_empty(n, d), x.new_empty(n, d)
    parts = x.new_empty((count, (2 * r + 1) * d), dtype=torch.float32)
    inputs = (grad, x0, x, v, u, bias, hidden, dh)
    lengths = (n, d, r, share, grad.stride(0), x0.stride(0), x.stride(0))
    shape = (passes, padded(r))
    launch(_gradients, (across, count), *inputs, dx0, dx, parts, *lengths, *shape, **c, WAIT=early)
    dv, du, db = torch.empty_like(v), torch.empty_like(u), u.new_empty(d)
    grid, sums = cdiv((2 * r + 1) * d, 512), {"AT_ONCE": 16, "BLOCK": 512, "num_warps": 4}
    launch(_add_parts, (grid,), parts, dv, du, db, count, d, r * d, **sums, WAIT=early)
    return dx0, dx, dv, du, db
