"""The second half of a cross layer of a large rank on Hopper: ``cross_expand``, tiles by TMA.

As many programs as run at once walk over all tiles, so that a tile's first operands arrive while
the one before it is finished. TMA copies take no registers for addresses: tiles may be so large
(128 x 256) that operands from L2 do not bind. The tile is finished in column halves (PARTS), which
keeps x0 and x of one half in registers at a time; ASK has them brought to L2 during the product.

Not timed yet.

Bytes: as ``cross_expand``; from L2, r (ROWS + COLUMNS) items a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .cross_tiles import ask
from .launch import cdiv, dot, launch, multiprocessors


@triton.jit
def _place(at, down, across, GROUP: tl.constexpr):
    """The tile of this number: GROUP rows of tiles are walked together, column by column."""
    group = at // (GROUP * across)
    tall = tl.minimum(down - group * GROUP, GROUP)
    within = at % (GROUP * across)
    return group * GROUP + within % tall, within // tall


@triton.jit(do_not_specialize=["n"])
def _expand_persistent(
    x0, hidden, u, bias, x, out, x0_at, x_at, n, d, r, x0_row, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PARTS: tl.constexpr,
    ASK: tl.constexpr, GROUP: tl.constexpr = 8,
):  # fmt: skip
    """out = x0 * (hidden u^T + bias) + x, without bias or x where they are None."""
    down, across = tl.cdiv(n, ROWS), tl.cdiv(d, COLUMNS)
    WIDTH: tl.constexpr = COLUMNS // PARTS
    for at in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        down_at, across_at = _place(at, down, across, GROUP)
        row, column = down_at * ROWS, across_at * COLUMNS
        if ASK:
            known = tl.minimum(row + tl.arange(0, ROWS), n - 1).to(tl.int64)
            ask(x0_at, known, column, x0_row, d, COLUMNS)
            if x_at is not None:
                ask(x_at, known, column, x_row, d, COLUMNS)
        t = tl.zeros((ROWS, COLUMNS), tl.float32)
        for rank in range(0, r, INNER):
            t = dot(hidden.load([row, rank]), u.load([column, rank]).T, t, "ieee")
        if PARTS == 2:
            first, second = tl.split(tl.permute(tl.reshape(t, (ROWS, 2, WIDTH)), (0, 2, 1)))
            _finish(x0, bias, x, out, first, row, column, d, WIDTH)
            _finish(x0, bias, x, out, second, row, column + WIDTH, d, WIDTH)
        else:
            _finish(x0, bias, x, out, t, row, column, d, WIDTH)


@triton.jit
def _finish(x0, bias, x, out, t, row, column, d, WIDTH: tl.constexpr):
    """out = x0 * (t + bias) + x of one tile."""
    if bias is not None:
        at = column + tl.arange(0, WIDTH)
        t += tl.load(bias + at, mask=at < d, other=0).to(tl.float32)[None, :]
    y = x0.load([row, column]).to(tl.float32) * t
    if x is not None:
        y += x.load([row, column]).to(tl.float32)
    out.store([row, column], y.to(out.dtype))


# ---- launchers ---------------------------------------------------------------------------


PERSISTENT = (
    {"ROWS": 128, "COLUMNS": 256, "INNER": 64, "PARTS": 2, "ASK": True, "each": 1}
    | {"num_warps": 8, "num_stages": 3},
)


def copyable(*tensors: Tensor | None) -> bool:
    """Whether TMA takes these matrices: rows of whole 16 bytes that start at such an address."""

    def takes(t: Tensor) -> bool:
        inside = t.numel() > 0 and t.stride(1) == 1 and t.stride(0) >= t.shape[1]
        return inside and t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0

    return all(t is None or takes(t) for t in tensors)


def expand_persistent(c: dict[str, int], x0, hidden, u, bias, x, out) -> None:
    """x0 * (hidden u^T + bias) + x into ``out``, with the tiles ``c``; see ``copyable``.

    each: programs of a multiprocessor.
    """
    n, r, d = *hidden.shape, u.shape[0]
    across = c["COLUMNS"] // c["PARTS"]

    def described(t: Tensor | None, rows: int, columns: int) -> TensorDescriptor | None:
        if t is None:
            return None
        return TensorDescriptor(t, list(t.shape), list(t.stride()), [rows, columns])

    inputs = (x0, x, n, d, r, x0.stride(0), 0 if x is None else x.stride(0))
    x0, x, out = (described(t, c["ROWS"], across) for t in (x0, x, out))
    hidden = described(hidden, c["ROWS"], c["INNER"])
    u = described(u, c["COLUMNS"], c["INNER"])
    tiles = cdiv(n, c["ROWS"]) * cdiv(d, c["COLUMNS"])
    constants = {name: value for name, value in c.items() if name != "each"}
    grid = (min(tiles, c["each"] * multiprocessors(out.base)),)
    launch(_expand_persistent, grid, x0, hidden, u, bias, x, out, *inputs, **constants)
