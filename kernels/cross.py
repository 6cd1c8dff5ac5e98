"""Low-rank cross layers on GPUs: Triton kernels and their launchers.

``_cross`` (r <= 256) is a layer in one kernel. A program takes ROWS rows: it reads x and v in
tiles of COLUMNS columns into h = x v^T, which stays on chip, then walks the columns again: t =
h u^T, and y = x0 * (t + bias) + x leaves at once. (B, r) and (B, d) intermediates never reach
memory. The weights are read by every program, from L2: 2 * r * d items each.

``_cross_backward`` (r <= 128) does the same for grad: dh = (grad * x0) u on chip, then dx0 =
grad * (h u^T + bias) and dx = grad + dh v. It leaves dh and dt = grad * x0 for the two weight
gradients, whose sums run over the batch: those are plain products, for cuBLAS. The bias's
gradient comes from one partial sum per program, added up by torch in a fixed order.

Beyond those ranks, and in float64, torch.mm makes the products and ``_epilogue`` the rest.
A float32 product takes tf32 where ``torch.backends.cuda.matmul.allow_tf32`` says so, else three
tf32 passes, exact to about float32. In bfloat16 an intermediate enters the next product as the
sum of two bfloat16 numbers, so that only the result is rounded; where torch.mm makes the
products, intermediates are rounded, as in eager.

Bytes: forward 3 B d items (x twice, the second time mostly from L2: 4 at worst, or x0 once where
x is x0) and 2 r d of weights. B=4096, d=1024 in bfloat16: 25 MB, 7.5 us at 3.35 TB/s (H100,
datasheet); its 4 B d r = 1.1 GFLOP at r=64 take 1.1 us. Backward: reads 3, writes 3 B d items.

Dropped: atomics for the weight gradients (sums differ from run to run); float16 intermediates
as two float16 numbers (h beyond 65504 overflows where the result does not): float32 there;
32 rows in float32 beyond r=64, which spilled 6 KB a thread at r=256, 0.2 to 0.5 KB at r=128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.ops._cross_checks import (
    check_cross,
    check_grad,
    check_net,
    check_tokens,
    kept_columns,
)

from . import cross_attention, cross_net
from ._launch import batch_class, choose, dot, launch, rows, size_class
from ._tiles import keep, padded, precision, product, tile, turned

FORWARD_RANK = 256  # largest rank of the kernels that keep (ROWS, r) on chip
BACKWARD_RANK = 128

COMPUTED, STORED, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _project(
    x,
    v,
    row,
    rank,
    x_row,
    n,
    d,
    r,
    PRECISION: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x v^T of some rows."""
    h = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        a = tile(x, row, column, x_row, n, d)
        h = dot(a, turned(v, column, rank, d, d, r), h, PRECISION)
    return h


@triton.jit(do_not_specialize=["n"])
def _cross(
    x0,
    x,
    v,
    u,
    bias,
    hidden,
    out,
    n,
    d,
    r,
    x0_row,
    x_row,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, RANK).to(tl.int64)
    if HIDDEN == GIVEN:
        h = tile(hidden, row, rank, r, n, r).to(tl.float32)
    else:
        h = _project(x, v, row, rank, x_row, n, d, r, PRECISION, RANK, ROWS, COLUMNS)
    if HIDDEN == STORED:
        keep(hidden, h, row, rank, r, n, r)
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        t = tl.zeros((ROWS, COLUMNS), tl.float32)
        t = product(h, turned(u, rank, column, r, r, d), t, PRECISION)
        if bias is not None:
            t += tl.load(bias + column, mask=column < d, other=0).to(tl.float32)[None, :]
        y = tile(x0, row, column, x0_row, n, d).to(tl.float32) * t
        y += tile(x, row, column, x_row, n, d).to(tl.float32)
        keep(out, y, row, column, d, n, d)


@triton.jit(do_not_specialize=["n"])
def _cross_backward(
    grad,
    x0,
    x,
    v,
    u,
    bias,
    hidden,
    dh_out,
    dt_out,
    dx0,
    dx,
    partial,
    n,
    d,
    r,
    grad_row,
    x0_row,
    x_row,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
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
        h = _project(x, v, row, rank, x_row, n, d, r, PRECISION, RANK, ROWS, COLUMNS)
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


def _tile_of(rows_: int, columns: int, warps: int) -> dict[str, int]:
    return {"ROWS": rows_, "COLUMNS": columns, "num_warps": warps, "num_stages": 2}


# By the padded rank up to which they serve. All fit the registers of sm_80 and sm_90
# (benchmarks/results/triton_resources.md).
_BFLOAT16 = {
    128: (_tile_of(64, 32, 8), _tile_of(16, 64, 4)),
    256: (_tile_of(32, 32, 8), _tile_of(16, 32, 8)),
}
_BFLOAT16_BACKWARD = {
    64: (_tile_of(64, 32, 8), _tile_of(16, 64, 4)),
    128: (_tile_of(32, 32, 8), _tile_of(16, 32, 8)),
}
_FLOAT32 = {
    64: (_tile_of(32, 32, 4), _tile_of(16, 64, 8)),  # of 4 warps: 16 bytes of stack on sm_100
    256: (_tile_of(16, 32, 8),),
}
_FLOAT32_BACKWARD = {
    64: (_tile_of(32, 32, 8), _tile_of(16, 32, 4)),
    128: (_tile_of(16, 32, 8),),
}


def _tiles(dtype: torch.dtype, rank: int, backward: bool) -> tuple[dict[str, int], ...]:
    """float16 is multiplied as float32: see ``_tiles.product``."""
    if dtype == torch.bfloat16:
        table = _BFLOAT16_BACKWARD if backward else _BFLOAT16
    else:
        table = _FLOAT32_BACKWARD if backward else _FLOAT32
    return next(tiles for largest, tiles in table.items() if rank <= largest)


def _fused(t: Tensor, r: int, largest: int) -> bool:
    return t.dtype != torch.float64 and r <= largest


def _layer(x0, x, v, u, bias, hidden, state) -> Tensor:
    """``_cross`` on checked arguments."""
    n, d, r = *x.shape, u.shape[1]
    out = x0.new_empty(n, d)
    u, bias = u.contiguous(), None if bias is None else rows(bias)
    v = v if v is None else v.contiguous()
    x0, x = rows(x0), rows(x)
    args = (
        x0,
        x,
        v,
        u,
        bias,
        hidden,
        out,
        n,
        d,
        r,
        x0.stride(0),
        x.stride(0),
        precision(),
        state.value,
    )

    def run(c):
        launch(_cross, (triton.cdiv(n, c["ROWS"]),), *args, padded(r), **c)

    key = ("cross", x.dtype, precision(), state.value, padded(r), size_class(d), batch_class(n))
    choose(key, _tiles(x.dtype, padded(r), False), run)
    return out


def _finish(x0: Tensor, t: Tensor, bias: Tensor | None, x: Tensor | None) -> Tensor:
    """x0 * (t + bias) + x."""
    n, d = t.shape
    out = t.new_empty(n, d)
    x0, t, x = rows(x0), t.contiguous(), None if x is None else rows(x)
    bias = None if bias is None else rows(bias)
    compute = tl.float64 if t.dtype == torch.float64 else tl.float32
    c = {"ROWS": 4, "COLUMNS": 256, "num_warps": 4}
    grid = (triton.cdiv(n, c["ROWS"]), triton.cdiv(d, c["COLUMNS"]))
    x_row = 0 if x is None else x.stride(0)
    launch(_epilogue, grid, x0, t, bias, x, out, n, d, x0.stride(0), x_row, compute, **c)
    return out


def low_rank_cross(x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """The op on a GPU; scratch: none up to FORWARD_RANK, else (B, r) and (B, d)."""
    check_cross("low_rank_cross", x0, x, {"v": v}, u, bias)
    if _fused(x, u.shape[1], FORWARD_RANK):
        return _layer(x0, x, v, u, bias, None, COMPUTED)
    return _finish(x0, x @ v.T @ u.T, bias, x)


def low_rank_cross_train(x0, x, v, u, bias) -> tuple[Tensor, Tensor]:
    """The result, and the first columns of x @ v.T for the backward."""
    check_cross("low_rank_cross_train", x0, x, {"v": v}, u, bias)
    kept = kept_columns(x.shape[1], u.shape[1])
    if _fused(x, u.shape[1], FORWARD_RANK):
        hidden = x.new_empty(x.shape[0], u.shape[1])
        return _layer(x0, x, v, u, bias, hidden, STORED), hidden[:, :kept].contiguous()
    hidden = x @ v.T
    return _finish(x0, hidden @ u.T, bias, x), hidden[:, :kept].contiguous()


def low_rank_cross_backward(grad, x0, x, v, u, bias, hidden=None) -> tuple[Tensor, ...]:
    """Gradients for x0, x, v, u and bias; scratch: (B, d) and two of (B, r)."""
    op = "low_rank_cross_backward"
    check_cross(op, x0, x, {"v": v}, u, bias)
    check_grad(op, grad, x0)
    if hidden is not None and hidden.shape[1] == 0:
        hidden = None
    if hidden is not None and hidden.shape[1] < u.shape[1]:
        hidden = torch.cat([hidden, x @ v[hidden.shape[1] :].T], dim=1)
    if _fused(x, u.shape[1], BACKWARD_RANK):
        return _fused_backward(grad, x0, x, v, u, bias, hidden)
    h = x @ v.T if hidden is None else hidden
    dt = grad * x0
    dh = dt @ u
    dx0 = _finish(grad, h @ u.T, bias, None)
    return dx0, torch.addmm(grad, dh, v), dh.T @ x, dt.T @ h, dt.sum(0)


def _fused_backward(grad, x0, x, v, u, bias, hidden) -> tuple[Tensor, ...]:
    n, d, r = *x.shape, u.shape[1]
    dt, dx0, dx = (x.new_empty(n, d) for _ in range(3))
    dh, state = x.new_empty(n, r), COMPUTED if hidden is None else GIVEN
    h = x.new_empty(n, r) if hidden is None else hidden.contiguous()
    v, u, bias = v.contiguous(), u.contiguous(), None if bias is None else rows(bias)
    grad, x0, x = rows(grad), rows(x0), rows(x)
    strides = (grad.stride(0), x0.stride(0), x.stride(0))
    sums = {}

    def run(c):
        programs = triton.cdiv(n, c["ROWS"])
        partial = x.new_empty((programs, d), dtype=torch.float32)
        args = (grad, x0, x, v, u, bias, h, dh, dt, dx0, dx, partial, n, d, r, *strides)
        launch(_cross_backward, (programs,), *args, precision(), state.value, padded(r), **c)
        sums["bias"] = partial

    key = ("back", x.dtype, precision(), state.value, padded(r), size_class(d), batch_class(n))
    choose(key, _tiles(x.dtype, padded(r), True), run)
    return dx0, dx, dh.T @ x, dt.T @ h, sums["bias"].sum(0).to(x.dtype)


# ---- with attention ------------------------------------------------------------------------


def outer_attention(q, k, v, temperature=1.0, token_dim=1) -> Tensor:
    """The op on a GPU: see ``cross_attention``."""
    return cross_attention.outer_attention(q, k, v, temperature, token_dim)


def outer_attention_backward(grad, q, k, v, temperature=1.0, token_dim=1) -> tuple[Tensor, ...]:
    """Gradients for q, k and v."""
    return cross_attention.outer_attention_backward(grad, q, k, v, temperature, token_dim)


def attention_cross(x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True) -> Tensor:
    """One product for queries, keys and values, the attention, ``_cross`` from its second half."""
    return attention_cross_train(x0, x, q, k, v, u, bias, temperature, token_dim, skip)[0]


def attention_cross_train(
    x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, (B, 3r) queries, keys and values, and (B, r) what enters u."""
    op = "attention_cross"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    if _fused(x, u.shape[1], FORWARD_RANK):
        return _layer(x0, x, None, u, bias, mixed, GIVEN), hidden, mixed
    return _finish(x0, mixed @ u.T, bias, x), hidden, mixed


def _mix(x, q, k, v, temperature, token_dim, skip) -> tuple[Tensor, Tensor]:
    hidden = x @ torch.cat([q, k, v]).T
    return hidden, cross_attention.forward(*hidden.chunk(3, 1), temperature, token_dim, skip)


def attention_cross_backward(
    grad, x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True, hidden=None, mixed=None
) -> tuple[Tensor, ...]:
    """Gradients for x0, x, q, k, v, u and bias; scratch: two of (B, d), one of (B, 4r)."""
    op = "attention_cross_backward"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    check_grad(op, grad, x0)
    if hidden is None or mixed is None:
        hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    dt = grad * x0
    dp = dt @ u
    dh = torch.empty_like(hidden)
    inputs, outputs = (dp, *hidden.chunk(3, 1)), dh.chunk(3, 1)
    cross_attention.backward(inputs, outputs, temperature, token_dim, skip)
    dx0 = _finish(grad, mixed @ u.T, bias, None)
    dx = torch.addmm(grad, dh, torch.cat([q, k, v]))
    dq, dk, dv = (t.contiguous() for t in (dh.T @ x).chunk(3))
    return dx0, dx, dq, dk, dv, dt.T @ mixed, dt.sum(0)


def residual_cross_net(
    x, low_rank, attention, temperature, log_temperatures, token_dim=1, skip=True, merge=0
) -> Tensor:
    """Two stacks on one input: in one kernel or two where that fits, see ``cross_net``."""
    check_net(x, low_rank, attention, temperature, log_temperatures, token_dim, merge)
    args = (temperature, log_temperatures)

    def layered():
        return _layer_by_layer(x, low_rank, attention, *args, token_dim, skip, merge)

    if not cross_net.fits(x, low_rank, attention, token_dim):
        return layered()
    return cross_net.forward(x, low_rank, attention, *args, skip, merge, layered)


def _layer_by_layer(
    x, low_rank, attention, temperature, log_temperatures, token_dim, skip, merge
) -> Tensor:
    """A learnt temperature divides q, so that nothing is waited for."""
    low, high = x, x
    for i in range(0, len(low_rank), 3):
        low = low_rank_cross(x, low, *low_rank[i : i + 3])
    for i in range(0, len(attention), 5):
        q, *layer = attention[i : i + 5]
        if log_temperatures:
            q, temperature = q / log_temperatures[i // 5].exp(), 1.0
        high = attention_cross(x, high, q, *layer, temperature, token_dim, skip)
    if merge == 2:
        return torch.cat([low, high], dim=-1)
    return (low + high) / (1 + merge)
