"""Backward of a low-rank cross layer in one kernel, for ranks up to 128.

``_cross_backward`` does for grad what ``cross._cross`` does for x: dh = (grad * x0) u on chip, then
dx0 = grad * (h u^T + bias) and dx = grad + dh v. It leaves dh and dt = grad * x0 for the two weight
gradients, whose sums run over the batch: those are plain products, for cuBLAS. The bias's
gradient comes from one partial sum per program, added up by torch in a fixed order.

Plain products are timed beside it. On an H100 a step forward and backward at B=4096, d=1024, r=64
in bfloat16 took 118 us with this kernel, and torch.compile with products 68 to 83. Those round dh
and dt to the type of x, as eager does. In bfloat16 ``cross_gradients``, which writes no dt, is
timed as well.

Bytes: reads 3, writes 3 B d items.

Dropped: atomics for the weight gradients (sums differ from run to run).
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cross_gradients
from .cross_tiles import COMPUTED, GIVEN, keep, padded, precision, product, projected, tile, turned
from .launch import batch_class, cdiv, choose, launch, rows, size_class


@triton.jit(do_not_specialize=["n"])
def _cross_backward(
    grad, x0, x, v, u, bias, hidden, dh_out, dt_out, dx0, dx, partial, n, d, r, grad_row, x0_row,
    x_row,
    PRECISION: tl.constexpr, HIDDEN: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, RANK).to(tl.int64)
    dh = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        dt = tile(grad, row, column, grad_row, n, d).to(tl.float32)
        dt *= tile(x0, row, column, x0_row, n, d).to(tl.float32)
        keep(dt_out, dt, row, column, d, n, d)
        mine = partial + tl.program_id(0).to(tl.int64) * d + column
        tl.store(mine, tl.sum(dt, 0), mask=column < d)
        dh = product(dt, tile(u, column, rank, r, d, r), dh, PRECISION)
    keep(dh_out, dh, row, rank, r, n, r)
    if HIDDEN == GIVEN:
        h = tile(hidden, row, rank, r, n, r).to(tl.float32)
    else:
        h = projected(x, v, row, rank, x_row, n, d, r, PRECISION, RANK, ROWS, COLUMNS)
        keep(hidden, h, row, rank, r, n, r)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        g = tile(grad, row, column, grad_row, n, d).to(tl.float32)
        t = tl.zeros((ROWS, COLUMNS), tl.float32)
        t = product(h, turned(u, rank, column, r, r, d), t, PRECISION)
        if bias is not None:
            t += tl.load(bias + column, mask=column < d, other=0).to(tl.float32)[None, :]
        keep(dx0, g * t, row, column, d, n, d)
        keep(dx, product(dh, tile(v, rank, column, d, r, d), g, PRECISION), row, column, d, n, d)


# ---- launchers ---------------------------------------------------------------------------


def _tile_of(rows_: int, columns: int, warps: int) -> dict[str, int]:
    return {"ROWS": rows_, "COLUMNS": columns, "num_warps": warps, "num_stages": 2}


# By the padded rank up to which they serve.
_BFLOAT16 = {
    64: (_tile_of(64, 32, 8), _tile_of(16, 64, 4)),
    128: (_tile_of(32, 32, 8), _tile_of(16, 32, 8)),
}
_FLOAT32 = {
    64: (_tile_of(32, 32, 8), _tile_of(16, 32, 4)),
    128: (_tile_of(16, 32, 8),),
}


def _tiles(dtype: torch.dtype, rank: int) -> tuple[dict[str, int], ...]:
    table = _BFLOAT16 if dtype == torch.bfloat16 else _FLOAT32
    return next(tiles for largest, tiles in table.items() if rank <= largest)


def fused_backward(grad, x0, x, v, u, bias, hidden, by_products) -> tuple[Tensor, ...]:
    """All gradients; ``by_products`` finds the same by plain products, and is timed beside this."""
    n, d, r = *x.shape, u.shape[1]
    state = COMPUTED if hidden is None else GIVEN
    passes, found = precision(), []
    inputs = (rows(grad), rows(x0), rows(x), v.contiguous(), u.contiguous())
    inputs = (*inputs, None if bias is None else rows(bias))

    def fused(c):
        dt, dx0, dx = (x.new_empty(n, d) for _ in range(3))
        dh, programs = x.new_empty(n, r), cdiv(n, c["ROWS"])
        h = x.new_empty(n, r) if hidden is None else hidden.contiguous()
        parts = x.new_empty((programs, d), dtype=torch.float32)
        strides = tuple(t.stride(0) for t in inputs[:3])
        args = (*inputs, h, dh, dt, dx0, dx, parts, n, d, r, *strides)
        launch(_cross_backward, (programs,), *args, passes, state.value, padded(r), **c)
        return dx0, dx, dh.T @ x, dt.T @ h, parts.sum(0).to(x.dtype)

    def run(c):
        found[:] = fused(c) if isinstance(c, dict) else c()

    candidates = [*_tiles(x.dtype, padded(r)), by_products]
    if x.dtype == torch.bfloat16:
        for c in cross_gradients.tiles(x, padded(r)):
            candidates.append(partial(cross_gradients.gradients, c, *inputs, hidden))
    key = ("back", x.dtype, passes, state.value, padded(r), size_class(d), batch_class(n))
    choose(key, candidates, run)
    return tuple(found)
