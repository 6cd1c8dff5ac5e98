"""Low-rank cross layers on GPUs: Triton kernels and their launchers.

``_cross`` (r <= 256) is a layer in one kernel. A program takes ROWS rows: it reads x and v in
tiles of COLUMNS columns into h = x v^T, which stays on chip, then walks the columns again: t =
h u^T, and y = x0 * (t + bias) + x leaves at once. (B, r) and (B, d) intermediates never reach
memory. The weights are read by every program, from L2: 2 * r * d items each. In the second walk
the tiles of x0 and x are asked for one step ahead: Triton does that only for what feeds a product.
With ASK, which is not timed yet, x0 is brought to L2 during the first walk.

Plans of two kernels are timed beside it: torch.mm makes h in float32, or ``cross_project`` makes
it as the sum of two bfloat16 numbers, and ``cross_expand`` the rest over rows and columns, so that
no program walks serially. Beyond that rank h is rounded to the type of x, as in eager, and
torch.mm with an epilogue is timed as well. float64 always takes the latter. Backward: plain
products and the same epilogue, and up to rank 128 ``cross_gradients`` (bfloat16) or
``cross_backward``, timed beside that.

A float32 product takes tf32 where ``torch.backends.cuda.matmul.allow_tf32`` says so, else three
tf32 passes, exact to about float32, or cuBLAS's float32 where torch.mm makes it. In bfloat16, up
to rank 256, an intermediate enters the next product as the sum of two bfloat16 numbers, so that
only the result is rounded.

Bytes: forward 3 B d items (x twice, the second time mostly from L2: 4 at worst, or x0 once where
x is x0) and 2 r d of weights. B=4096, d=1024 in bfloat16: 25 MB, 7.5 us at 3.35 TB/s (H100,
datasheet); its 4 B d r = 1.1 GFLOP at r=64 take 1.1 us.

Dropped: float16 intermediates as two float16 numbers (h beyond 65504 overflows where the result
does not): float32 there; 32 rows in float32 beyond r=64, which spilled 6 KB a thread at r=256, 0.2
to 0.5 KB at r=128; 32 rows of 128 columns in bfloat16, with 4 warps or with ASK, which spilled 8
bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cross_attention, cross_net
from .cross_backward import fused_backward
from .cross_expand import expand, finish
from .cross_project import project
from .cross_tiles import (
    COMPUTED,
    STORED,
    ask,
    keep,
    padded,
    precision,
    product,
    projected,
    tile,
    turned,
)
from .launch import architecture, batch_class, cdiv, choose, launch, rows, size_class

FORWARD_RANK = 256  # largest rank of the kernels that keep (ROWS, r) on chip
BACKWARD_RANK = 128


@triton.jit(do_not_specialize=["n"])
def _cross(
    x0, x, v, u, bias, hidden, out, n, d, r, x0_row, x_row,
    PRECISION: tl.constexpr, HIDDEN: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ASK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if ASK:
        for start in range(0, d, COLUMNS):
            ask(x0, tl.minimum(row, n - 1), start, x0_row, d, COLUMNS)
    rank = tl.arange(0, RANK).to(tl.int64)
    h = projected(x, v, row, rank, x_row, n, d, r, PRECISION, RANK, ROWS, COLUMNS)
    if HIDDEN == STORED:
        keep(hidden, h, row, rank, r, n, r)
    column = tl.arange(0, COLUMNS).to(tl.int64)
    a0, a = tile(x0, row, column, x0_row, n, d), tile(x, row, column, x_row, n, d)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        ahead = column + COLUMNS
        next0, following = tile(x0, row, ahead, x0_row, n, d), tile(x, row, ahead, x_row, n, d)
        t = tl.zeros((ROWS, COLUMNS), tl.float32)
        t = product(h, turned(u, rank, column, r, r, d), t, PRECISION)
        if bias is not None:
            t += tl.load(bias + column, mask=column < d, other=0).to(tl.float32)[None, :]
        y = a0.to(tl.float32) * t + a.to(tl.float32)
        keep(out, y, row, column, d, n, d)
        a0, a = next0, following


# ---- launchers ---------------------------------------------------------------------------


def _tile_of(
    rows_: int, columns: int, warps: int, stages: int = 2, ask_: bool = False
) -> dict[str, int]:
    tile_ = {"ROWS": rows_, "COLUMNS": columns, "ASK": ask_}
    return tile_ | {"num_warps": warps, "num_stages": stages}


# By the padded rank up to which they serve. Two stages have one tile in flight, three or four have
# two or three (benchmarks/results/triton_resources.md: waits).
_BFLOAT16 = {
    128: (_tile_of(64, 32, 8), _tile_of(16, 64, 4)),
    256: (_tile_of(32, 32, 8), _tile_of(16, 32, 8)),
}
_HOPPER = {
    128: (
        _tile_of(64, 64, 8, 3),
        _tile_of(64, 64, 4, 4),
        _tile_of(16, 128, 4, 4),
        _tile_of(32, 64, 8, 4, True),
    ),
    256: (_tile_of(64, 64, 8, 3), _tile_of(64, 32, 8, 3), _tile_of(16, 64, 8, 4)),
}
_FLOAT32 = {
    64: (_tile_of(32, 32, 4), _tile_of(16, 64, 8)),  # of 4 warps: 16 bytes of stack on sm_100
    256: (_tile_of(16, 32, 8),),
}


def _tiles(x: Tensor, rank: int) -> tuple[dict[str, int], ...]:
    """float16 is multiplied as float32: see ``cross_tiles.product``."""
    table = _FLOAT32
    if x.dtype == torch.bfloat16:
        table = _HOPPER if architecture(x) == 90 else _BFLOAT16
    return next(tiles for largest, tiles in table.items() if rank <= largest)


def _fused(t: Tensor, r: int, largest: int) -> bool:
    return t.dtype != torch.float64 and r <= largest


def _layer(x0, x, v, u, bias, hidden) -> Tensor:
    """A layer on checked arguments, in one kernel or in two; x v^T stays in ``hidden`` if given."""
    n, d, r = *x.shape, u.shape[1]
    u, bias = u.contiguous(), None if bias is None else rows(bias)
    v, x0, x = v.contiguous(), rows(x0), rows(x)
    state, passes = COMPUTED if hidden is None else STORED, precision()
    result = {}

    def run(c):
        if not isinstance(c, dict):
            result["out"] = c(x0, x, v, u, bias, hidden)
            return
        result["out"] = x0.new_empty(n, d)
        lengths = (n, d, r, x0.stride(0), x.stride(0))
        args = (x0, x, v, u, bias, hidden, result["out"], *lengths, passes, state.value)
        launch(_cross, (cdiv(n, c["ROWS"]),), *args, padded(r), **c)

    key = ("cross", x.dtype, passes, state.value, padded(r), size_class(d), batch_class(n))
    apart = (_in_two, _by_product) if x.dtype == torch.bfloat16 else (_by_product,)
    choose(key, (*_tiles(x, padded(r)), *apart), run)
    return result["out"]


def _in_two(x0, x, v, u, bias, hidden) -> Tensor:
    """A layer in bfloat16 as ``project`` and ``expand``; h goes between them as two bfloat16."""
    h = x.new_empty(x.shape[0], u.shape[1]) if hidden is None else hidden
    rest = torch.empty_like(h)
    early = project(x, v, h, rest=rest, ahead=x0)
    return expand(x0, h, u, bias, x, rest=rest, early=early)


def _by_product(x0, x, v, u, bias, hidden) -> Tensor:
    """A layer as torch.mm and ``expand``; h goes between them in float32."""
    if x.dtype == torch.float32:
        h = x @ v.T
    elif x.is_cuda:
        h = torch.mm(x, v.T, out_dtype=torch.float32)
    else:
        h = x.float() @ v.T.float()
    if hidden is not None:
        hidden.copy_(h)
    return expand(x0, h, u, bias, x)


def _second_half(x0, hidden, u, bias, x) -> Tensor:
    """x0 * (hidden u^T + bias) + x."""
    if x0.dtype == torch.float64:
        return finish(x0, hidden @ u.T, bias, x)
    return expand(x0, hidden, u, bias, x, apart=u.shape[1] > FORWARD_RANK)


def _low_rank(x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    if _fused(x, u.shape[1], FORWARD_RANK):
        return _layer(x0, x, v, u, bias, None)
    return _second_half(x0, x @ v.T, u, bias, x)


def _mix(x, q, k, v, temperature, token_dim, skip) -> tuple[Tensor, Tensor]:
    """(B, 3r) queries, keys and values, and (B, r) what enters u."""
    hidden = x @ torch.cat([q, k, v]).T
    return hidden, cross_attention.forward(*hidden.chunk(3, 1), temperature, token_dim, skip)


def _attention(x0, x, q, k, v, u, bias, temperature, token_dim, skip) -> tuple[Tensor, ...]:
    """The result, and what :func:`_mix` gives.

    One product for queries, keys and values, the attention, ``_cross`` from its second half.
    """
    hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    return _second_half(x0, mixed, u, bias, x), hidden, mixed


# ---- launchers: a is the checked call of the op --------------------------------------------


def low_rank_cross(a) -> Tensor:
    """The op on a GPU; scratch: none up to FORWARD_RANK, else (B, r) and (B, d)."""
    return _low_rank(*a)


def kept_columns(dim: int, rank: int) -> int:
    """Columns of x v^T that training keeps: as in ``lirank_ext/ops/cross.py``, which says why."""
    most = (2 * dim + 11 * rank) // 20
    return rank if most >= rank else most // 16 * 16


def low_rank_cross_train(a) -> tuple[Tensor, Tensor]:
    """The result, and the first columns of x @ v.T for the backward."""
    x0, x, v, u, bias = a
    kept = kept_columns(x.shape[1], u.shape[1])
    if _fused(x, u.shape[1], FORWARD_RANK):
        hidden = x.new_empty(x.shape[0], u.shape[1])
        return _layer(x0, x, v, u, bias, hidden), hidden[:, :kept].contiguous()
    hidden = x @ v.T
    return _second_half(x0, hidden, u, bias, x), hidden[:, :kept].contiguous()


def low_rank_cross_backward(a) -> tuple[Tensor, ...]:
    """Gradients for x0, x, v, u and bias; scratch: (B, d) and two of (B, r)."""
    grad, x0, x, v, u, bias, hidden = a
    if hidden is not None and hidden.shape[1] == 0:
        hidden = None
    if hidden is not None and hidden.shape[1] < u.shape[1]:
        hidden = torch.cat([hidden, x @ v[hidden.shape[1] :].T], dim=1)

    def by_products() -> tuple[Tensor, ...]:
        h = x @ v.T if hidden is None else hidden
        dt = grad * x0
        dh = dt @ u
        dx0 = _second_half(grad, h, u, bias, None)
        return dx0, torch.addmm(grad, dh, v), dh.T @ x, dt.T @ h, dt.sum(0)

    if _fused(x, u.shape[1], BACKWARD_RANK):
        return fused_backward(grad, x0, x, v, u, bias, hidden, by_products)
    return by_products()


outer_attention = cross_attention.outer_attention
outer_attention_backward = cross_attention.outer_attention_backward


def attention_cross(a) -> Tensor:
    """The op on a GPU; scratch: (B, 3r) and (B, r)."""
    return _attention(*a)[0]


def attention_cross_train(a) -> tuple[Tensor, Tensor, Tensor]:
    """The result, (B, 3r) queries, keys and values, and (B, r) what enters u."""
    return _attention(*a)


def attention_cross_backward(a) -> tuple[Tensor, ...]:
    """Gradients for x0, x, q, k, v, u and bias; scratch: two of (B, d), one of (B, 4r)."""
    grad, x0, x, q, k, v, u, bias, temperature, token_dim, skip, hidden, mixed = a
    if hidden is None or mixed is None:
        hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    dt = grad * x0
    dp = dt @ u
    dh = torch.empty_like(hidden)
    inputs, outputs = (dp, *hidden.chunk(3, 1)), dh.chunk(3, 1)
    cross_attention.backward(inputs, outputs, temperature, token_dim, skip)
    dx0 = _second_half(grad, mixed, u, bias, None)
    dx = torch.addmm(grad, dh, torch.cat([q, k, v]))
    dq, dk, dv = (t.contiguous() for t in (dh.T @ x).chunk(3))
    return dx0, dx, dq, dk, dv, dt.T @ mixed, dt.sum(0)


def residual_cross_net(a) -> Tensor:
    """Two stacks on one input: in one kernel or two where that fits, see ``cross_net``."""

    def layered():
        return _layer_by_layer(*a)

    if not cross_net.fits(a.x, a.low_rank, a.attention, a.token_dim):
        return layered()
    scales = (a.temperature, a.log_temperatures)
    return cross_net.forward(a.x, a.low_rank, a.attention, *scales, a.skip, a.merge, layered)


def _layer_by_layer(
    x, low_rank, attention, temperature, log_temperatures, token_dim, skip, merge
) -> Tensor:
    """A learnt temperature divides q, so that nothing is waited for."""
    low, high = x, x
    for i in range(0, len(low_rank), 3):
        low = _low_rank(x, low, *low_rank[i : i + 3])
    for i in range(0, len(attention), 5):
        q, *layer = attention[i : i + 5]
        if log_temperatures:
            q, temperature = q / log_temperatures[i // 5].exp(), 1.0
        high = _attention(x, high, q, *layer, temperature, token_dim, skip)[0]
    if merge == 2:
        return torch.cat([low, high], dim=-1)
    both = low + high
    return both / 2 if merge == 1 else both
