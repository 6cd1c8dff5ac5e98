"""The second half of a cross layer, out = x0 * (h u^T + bias) + x, as one product with an epilogue.

``_expand`` takes a tile of ROWS x COLUMNS results a program, over rows and columns both: a batch of
32 rows uses the whole chip, and no program walks serially over all columns. Its x0 and x are asked
for before the product (EARLY) where registers allow. Programs that share rows start together
(GROUP), so that h and u come from L2.

h is float32 where it is a plan for one layer of r <= 256, and enters as ``cross_tiles.product``
says, or ``cross_project`` has left it as two bfloat16 tensors; else it is as the caller has it,
rounded to the type of x. After ``cross_project`` it starts early (WAIT) and asks for x0 and x
while h is made.

Not timed yet: h as two tensors; ASK, which has x0 and x brought to L2 where the product takes the
registers; ``cross_expand_persistent``. All are candidates behind plans that were.

Bytes: 3 B d items, 28 us for 4096 x 3456 in bfloat16 at 3.0 TB/s; its 2 B d r operations at
r=512 are 14.5 GFLOP, which the tensor cores do meanwhile. Product and epilogue apart move 5 B d.

Dropped: tiles of 128 x 256 (552 bytes spilled a thread); masks on rows (35 instructions a step).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from .cross_expand_persistent import PERSISTENT, copyable, expand_persistent
from .cross_tiles import ask, clipped, keep, precision, product, tile
from .launch import architecture, batch_class, cdiv, choose, launch, rows, size_class


@triton.jit(do_not_specialize=["n"])
def _expand(
    x0, hidden, rest, u, bias, x, out, n, d, r, x0_row, hidden_row, x_row,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    EVEN: tl.constexpr, EARLY: tl.constexpr, ASK: tl.constexpr, WAIT: tl.constexpr,
    GROUP: tl.constexpr = 8,
):  # fmt: skip
    """out = x0 * ((hidden + rest) u^T + bias) + x, without rest, bias or x where they are None.

    EVEN: d and r are whole tiles. Rows behind the last read the last one, and are not stored.
    """
    down, across = tl.cdiv(n, ROWS), tl.cdiv(d, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    tall = tl.minimum(down - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    row = (group * GROUP + within % tall) * ROWS + tl.arange(0, ROWS)
    known = tl.minimum(row, n - 1).to(tl.int64)
    column_start = (within // tall) * COLUMNS
    column = column_start + tl.arange(0, COLUMNS)
    if EARLY:
        a0 = clipped(x0, known, column, x0_row, d, EVEN)
        if x is not None:
            a = clipped(x, known, column, x_row, d, EVEN)
    if ASK:
        ask(x0, known, column_start, x0_row, d, COLUMNS)
        if x is not None:
            ask(x, known, column_start, x_row, d, COLUMNS)
    if WAIT:
        cuda.gdc_wait()
    t = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, r, INNER):
        rank = start + tl.arange(0, INNER)
        h = clipped(hidden, known, rank, hidden_row, r, EVEN)
        at = u + column.to(tl.int64)[None, :] * r + rank[:, None]
        if EVEN:
            w = tl.load(at)
        else:
            w = tl.load(at, mask=(column < d)[None, :] & (rank < r)[:, None], other=0)
        if rest is not None:
            low = clipped(rest, known, rank, hidden_row, r, EVEN)
            t = product(low, w, t, PRECISION)
        t = product(h, w, t, PRECISION)
    if bias is not None:
        t += tl.load(bias + column, mask=column < d, other=0).to(tl.float32)[None, :]
    if not EARLY:
        a0 = clipped(x0, known, column, x0_row, d, EVEN)
        if x is not None:
            a = clipped(x, known, column, x_row, d, EVEN)
    y = a0.to(tl.float32) * t
    if x is not None:
        y += a.to(tl.float32)
    keep(out, y, row.to(tl.int64), column.to(tl.int64), d, n, d)


@triton.jit(do_not_specialize=["n"])
def _epilogue(
    x0,
    t,
    bias,
    x,
    out,
    n,
    d,
    x0_row,
    x_row,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = x0 * (t + bias) + x, without bias or x where they are None; t and out (n, d)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    y = tile(t, row, column, d, n, d).to(COMPUTE)
    if bias is not None:
        y += tl.load(bias + column, mask=column < d, other=0).to(COMPUTE)[None, :]
    y *= tile(x0, row, column, x0_row, n, d).to(COMPUTE)
    if x is not None:
        y += tile(x, row, column, x_row, n, d).to(COMPUTE)
    keep(out, y, row, column, d, n, d)


# ---- launchers ---------------------------------------------------------------------------


def _plan(
    rows_: int,
    columns: int,
    inner: int,
    early: bool,
    warps: int,
    stages: int = 3,
    ask_: bool = False,
) -> dict:
    tile_ = {"ROWS": rows_, "COLUMNS": columns, "INNER": inner, "EARLY": early, "ASK": ask_}
    return tile_ | {"num_warps": warps, "num_stages": stages}


_FEW = (_plan(16, 64, 64, True, 4), _plan(64, 32, 32, True, 4))
_FLOAT32 = (_plan(32, 64, 32, True, 4), _plan(64, 32, 32, True, 4))
_BFLOAT16 = (_plan(64, 64, 64, True, 4), _plan(64, 32, 32, True, 4))
_HOPPER = (_plan(64, 64, 64, True, 4), _plan(64, 128, 64, True, 4), _plan(128, 128, 64, False, 8))
_HOPPER_REST = (
    _plan(64, 64, 64, True, 4, 2),
    _plan(64, 128, 64, True, 8, 2),
    _plan(128, 64, 64, True, 8, 2),
)
_HOPPER_WIDE = (*_HOPPER, _plan(128, 128, 64, False, 4, 3, True))
WIDE = 192  # the rank from which larger tiles are tried: operands from L2 are most of what moves


def _plans(x0, hidden, rest, u, x) -> tuple[dict, ...]:
    """Small tiles where few rows have to fill the chip; float16 may enter as float32."""
    if batch_class(hidden.shape[0]) < batch_class(256):
        return _FEW
    if u.dtype != torch.bfloat16:
        return _FLOAT32
    if architecture(u) != 90:
        return _BFLOAT16
    if rest is not None:
        return _HOPPER_REST
    if u.shape[1] < WIDE or hidden.dtype != u.dtype:
        return _HOPPER
    return _HOPPER_WIDE + (PERSISTENT if copyable(x0, hidden, u, x) else ())


def expand(
    x0: Tensor,
    hidden: Tensor,
    u: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    apart: bool = False,
    rest: Tensor | None = None,
    early: bool = False,
) -> Tensor:
    """x0 * ((hidden + rest) u^T + bias) + x.

    apart: torch.mm and ``finish`` are timed beside it.
    rest: what hidden rounds off, laid out like it.
    early: the kernel in front has just written hidden and rest, nothing else, and lets this start.
    """
    n, r, d = *hidden.shape, u.shape[0]
    x0, x = rows(x0), None if x is None else rows(x)
    hidden, u, bias = rows(hidden), u.contiguous(), None if bias is None else rows(bias)
    result, passes = {"out": x0.new_empty(n, d)}, precision()
    lengths = (x0.stride(0), hidden.stride(0), 0 if x is None else x.stride(0))

    def run(c):
        if c is None:
            result["out"] = finish(x0, hidden @ u.T, bias, x)
            return
        if "PARTS" in c:
            expand_persistent(c, x0, hidden, u, bias, x, result["out"])
            return
        grid = (cdiv(n, c["ROWS"]) * cdiv(d, c["COLUMNS"]),)
        even = d % c["COLUMNS"] == 0 and r % c["INNER"] == 0
        args = (x0, hidden, rest, u, bias, x, result["out"], n, d, r, *lengths, passes)
        launch(_expand, grid, *args, **c, EVEN=even, WAIT=early)

    plans = _plans(x0, hidden, rest, u, x)
    kinds = (u.dtype, hidden.dtype, rest is None, x is None, passes, len(plans))
    key = ("expand", *kinds, size_class(r), size_class(d), batch_class(n))
    choose(key, (*plans, None) if apart else plans, run)
    return result["out"]


def finish(x0: Tensor, t: Tensor, bias: Tensor | None, x: Tensor | None) -> Tensor:
    """x0 * (t + bias) + x."""
    n, d = t.shape
    out = t.new_empty(n, d)
    x0, t, x = rows(x0), t.contiguous(), None if x is None else rows(x)
    bias = None if bias is None else rows(bias)
    compute = tl.float64 if t.dtype == torch.float64 else tl.float32
    c = {"ROWS": 4, "COLUMNS": 256, "num_warps": 4}
    grid = (cdiv(n, c["ROWS"]), cdiv(d, c["COLUMNS"]))
    x_row = 0 if x is None else x.stride(0)
    launch(_epilogue, grid, x0, t, bias, x, out, n, d, x0.stride(0), x_row, compute, **c)
    return out
