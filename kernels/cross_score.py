"""Candidates of requests through a residual cross net on GPUs: a request's columns count once.

The derivation is in ``csrc/simd/cross_score.h``. Two kernels are of their own. ``_fold`` makes
M = V^u diag(u) U^u of each request: a program takes a tile of one M, and u multiplies the tiles of
V on their way in, so that no copy of V is made for a request. ``_score`` makes
h = x_c V_c^T + k + P M^T for a tile of candidates of one request, where P holds what entered the u
of all earlier layers. The same kernel applies the weight after the net. Attention and the
candidates' states are the kernels of ``cross_attention`` and ``cross_expand``.

The counts are read on the host, once a call, to cut the tiles. Requests with on average fewer
candidates than three quarters of the rank, and float64, take joined rows. Written and checked in
Triton's interpreter; no timing on a GPU stands behind that rule or the sizes of the tiles.
"""

from __future__ import annotations

from collections import namedtuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cross_attention
from .cross import _attention as _attention_layer
from .cross import _low_rank, _second_half, residual_cross_net
from .cross_tiles import keep, precision, tile, turned
from .launch import cdiv, dot, launch
from .launch import rows as with_rows

ROWS, COLUMNS, DEPTH = 32, 32, 32

Net = namedtuple(
    "Net", "x low_rank attention temperature log_temperatures token_dim skip merge"
)  # as residual_cross_net takes it


@triton.jit
def _fold(
    v,
    u,
    request,
    out,
    n,
    r,
    d,
    v_row,
    u_row,
    out_row,
    factor,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out[q] (n, r) = factor * v (n, d) diag(request[q]) u (d, r), for a tile and request q."""
    q = tl.program_id(0).to(tl.int64)  # the first axis of a grid has no limit that matters
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, d, DEPTH):
        k = (start + tl.arange(0, DEPTH)).to(tl.int64)
        scale = tl.load(request + q * d + k, mask=k < d, other=0).to(tl.float32)
        a = tile(v, row, k, v_row, n, d).to(tl.float32) * scale[None, :]
        b = tile(u, k, column, u_row, d, r).to(tl.float32)
        total = dot(a, b, total, PRECISION)
    keep(out + q * n * out_row, total * factor, row, column, out_row, n, r)


@triton.jit
def _score(
    x,
    v,
    p,
    m,
    shift,
    tiles,
    out,
    columns,
    d,
    r,
    x_row,
    v_row,
    p_row,
    out_row,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out = x v^T + p m[q]^T + shift[q] on a tile of candidates of request q; r may be 0."""
    here = tl.program_id(0)
    q = tl.load(tiles + 3 * here)
    first, stop = tl.load(tiles + 3 * here + 1), tl.load(tiles + 3 * here + 2)
    row = first + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, d, DEPTH):
        k = (start + tl.arange(0, DEPTH)).to(tl.int64)
        a = tile(x, row, k, x_row, stop, d)
        total = dot(a, turned(v, k, column, v_row, d, columns), total, PRECISION)
    for start in range(0, r, DEPTH):
        k = (start + tl.arange(0, DEPTH)).to(tl.int64)
        a = tile(p, row, k, p_row, stop, r).to(tl.float32)
        b = turned(m + q * columns * r, k, column, r, r, columns).to(tl.float32)
        total = dot(a, b, total, PRECISION)
    once = tl.load(shift + q * columns + column, mask=column < columns, other=0)
    keep(out, total + once.to(tl.float32)[None, :], row, column, out_row, stop, columns)


# ---- launchers -------------------------------------------------------------------------------


def _folded(v: Tensor, u: Tensor, request: Tensor, factor: float = 1.0) -> Tensor:
    """v (n, d_u) diag(request) u (d_u, r) of every request, (R, n, r) in float32."""
    (n, d), r, count = v.shape, u.shape[1], request.shape[0]
    out = torch.empty(count, n, r, dtype=torch.float32, device=v.device)
    grid = (count, cdiv(n, ROWS), cdiv(r, COLUMNS))
    sizes = (n, r, d, v.stride(0), u.stride(0), r, factor)
    launch(_fold, grid, v, u, request, out, *sizes, precision(), ROWS, COLUMNS, DEPTH)
    return out


def _scored(x: Tensor, v: Tensor, p: Tensor, m: Tensor, shift: Tensor, tiles: Tensor) -> Tensor:
    """x v^T + p m^T + shift, the latter two of each candidate's request."""
    columns, d, r = v.shape[0], x.shape[1], p.shape[1]
    out = x.new_empty(x.shape[0], columns)
    sizes = (columns, d, r, x.stride(0), v.stride(0), max(1, p.stride(0)), columns)
    grid = (tiles.shape[0], cdiv(columns, COLUMNS))
    launch(_score, grid, x, v, p, m, shift, tiles, out, *sizes, precision(), ROWS, COLUMNS, DEPTH)
    return out


def _tiles(counts: list[int], device: torch.device) -> Tensor:
    """(tiles, 3): the request, its first candidate of the tile, and where the request ends."""
    each = torch.tensor(counts, dtype=torch.int64)
    end, tiles = each.cumsum(0), (each + ROWS - 1) // ROWS
    of = torch.repeat_interleave(tiles)
    within = torch.arange(len(of)) - (tiles.cumsum(0) - tiles)[of]
    first = (end - each)[of] + within * ROWS
    return torch.stack([of, first, end[of]], 1).to(device)


class _Stack:
    """One stack on candidates: their state, and what entered the u of each layer."""

    def __init__(self, a, tiles: Tensor, layers: list[Tensor], each: int) -> None:
        self.a, self.tiles, self.layers, self.each = a, tiles, layers, each
        self.width = a.request.shape[1]
        self.state = a.items
        self.p: list[Tensor] = []
        self.u: list[Tensor] = []  # the request's half of the u so far
        self.bias = a.request.new_zeros(self.width)
        for i in range(0, len(layers), each):
            self._layer(i)

    def joined(self) -> tuple[Tensor, Tensor]:
        """All p side by side, (N, k), and all u's halves of the request, (d_u, k)."""
        if not self.p:
            return self.a.items[:, :0], self.a.request.new_zeros(self.width, 0)
        return torch.cat(self.p, dim=1), torch.cat(self.u, dim=1)

    def _layer(self, i: int) -> None:
        a, width = self.a, self.width
        *kernels, u, bias = self.layers[i : i + self.each]
        temperature = a.temperature
        if self.each == 5 and a.log_temperatures:
            kernels[0], temperature = kernels[0] / a.log_temperatures[i // 5].exp(), 1.0
        v = with_rows(kernels[0]) if len(kernels) == 1 else torch.cat(kernels)
        p, before = self.joined()
        shift = (a.request * (1 + self.bias)) @ v[:, :width].T
        m = _folded(v[:, :width], before, a.request)
        h = _scored(self.state, v[:, width:], p, m, shift, self.tiles)
        if self.each == 5:
            h = cross_attention.forward(*h.chunk(3, 1), temperature, a.token_dim, a.skip)
        self.p.append(h)
        self.u.append(u[:width])
        half = (u[width:].contiguous(), bias[width:].contiguous())
        self.state = _second_half(a.items, h, *half, self.state)
        self.bias = self.bias + bias[:width]

    def whole(self, rows: Tensor) -> Tensor:
        """The state with the request's half, (N, d)."""
        p, u = self.joined()
        x0 = self.a.request[rows]
        return torch.cat([_second_half(x0, p, u.contiguous(), self.bias, x0), self.state], dim=1)


def residual_cross_score(a) -> Tensor:
    """The op on a GPU: folded of every request, or on joined rows."""
    counts = a.counts.tolist()
    _check_counts(counts, a.items.shape[0])
    ranks = [layer.shape[1] for layer in (*a.low_rank[1::3], *a.attention[3::5])]
    few = 4 * a.items.shape[0] < 3 * len(counts) * max(ranks)
    empty = not a.items.shape[0] or (a.weight is not None and not a.weight.shape[0])
    if few or empty or a.request.dtype == torch.float64:
        out = _on_joined_rows(a, _rows(a))
        return out if a.weight is None else torch.nn.functional.linear(out, a.weight, a.bias)
    weight = None if a.weight is None else with_rows(a.weight)
    a = a._replace(request=a.request.contiguous(), items=a.items.contiguous(), weight=weight)
    tiles = _tiles(counts, a.items.device)
    stacks = [_Stack(a, tiles, a.low_rank, 3)] if a.low_rank else []
    stacks += [_Stack(a, tiles, a.attention, 5)] if a.attention else []
    if a.weight is None:
        rows = _rows(a)
        states = [stack.whole(rows) for stack in stacks]
        return _merged(states, a.merge)
    return _weighted(a, stacks, tiles)


def _rows(a) -> Tensor:
    """The request of each candidate, (N,)."""
    requests = torch.arange(a.counts.shape[0], device=a.items.device)
    return torch.repeat_interleave(requests, a.counts, output_size=a.items.shape[0])


def _merged(states: list[Tensor], merge: int) -> Tensor:
    if len(states) == 1:
        return states[0]
    if merge == 2:
        return torch.cat(states, dim=1)
    return (states[0] + states[1]) / (1 + merge)


def _weighted(a, stacks: list[_Stack], tiles: Tensor) -> Tensor:
    """The weight after the net: on the candidates' states, and folded by the requests."""
    width, concatenated = a.request.shape[1], a.merge == 2 and len(stacks) == 2
    total = None
    factor = 0.5 if a.merge == 1 and len(stacks) == 2 else 1.0
    weights = a.weight.chunk(2, 1) if concatenated else [a.weight] * len(stacks)
    for stack, weight in zip(stacks, weights, strict=True):
        p, u = stack.joined()
        m = _folded(weight[:, :width], u, a.request, factor)
        shift = (a.request * (1 + stack.bias)) @ weight[:, :width].T * factor
        if total is None and a.bias is not None:
            shift = shift + a.bias
        state = stack.state if factor == 1 else stack.state * factor
        part = _scored(state, weight[:, width:], p, m, shift, tiles)
        total = part if total is None else total + part
    return total


def _on_joined_rows(a, rows: Tensor) -> Tensor:
    x0 = torch.cat([a.request[rows], a.items], dim=1)
    if a.low_rank and a.attention:
        return residual_cross_net(Net(x0, *a[3:10]))
    x = x0
    for i in range(0, len(a.low_rank), 3):
        x = _low_rank(x0, x, *a.low_rank[i : i + 3])
    for i in range(0, len(a.attention), 5):
        q, *layer = a.attention[i : i + 5]
        temperature = a.temperature
        if a.log_temperatures:
            q, temperature = q / a.log_temperatures[i // 5].exp(), 1.0
        x = _attention_layer(x0, x, q, *layer, temperature, a.token_dim, a.skip)[0]
    return x


def _check_counts(counts: list[int], items: int) -> None:
    text = "lirank::residual_cross_score: argument 'counts': wanted "
    if min(counts, default=0) < 0:
        raise ValueError(f"{text}no negative number, got {min(counts)}")
    if sum(counts) != items:
        raise ValueError(
            f"{text}numbers that add up to the {items} rows of items, got a sum of {sum(counts)}"
        )
