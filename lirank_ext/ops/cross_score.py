"""A residual cross net on the candidates of requests, whose own columns are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..library.checks import (
    check,
    check_device,
    check_dim,
    check_dtype,
    check_floating,
    refuse,
    shape,
)
from ..library.op import OPS, op
from .cross import low_rank_cross
from .cross_attention import attention_cross
from .cross_checks import check_layers
from .cross_net import net_flops


@op(family="cross", internal=True)
def residual_cross_score(
    request: Tensor,
    items: Tensor,
    counts: Tensor,
    low_rank: list[Tensor],
    attention: list[Tensor],
    temperature: float,
    log_temperatures: list[Tensor],
    token_dim: int = 1,
    skip: bool = True,
    merge: int = 0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``linear(net([request_r; item]), weight, bias)`` for every candidate of every request.

    The net is that of :func:`residual_cross_net`, or one of its stacks alone. Let u be a request
    and c a candidate, the two parts of ``x0``. The u part of a layer's state is linear in the
    hidden vectors h_j of the layers before it, ``x_l^u = u + sum_j u * (U_j^u h_j + b_j^u)``, so a
    request needs these once::

        k_l = V_l^u (u + sum_j u * b_j^u)        M_lj = V_l^u diag(u) U_j^u

    and a candidate only ``V_l x_l = V_l^c x_l^c + k_l + sum_j M_lj h_j``. ``weight`` is folded in
    the same way. With attention, V is [Q; K; V] and h_j is what enters U_j. The CPU kernel chooses
    by the cost of both ways, request by request (``csrc/cross_score_plan.h``).

    Where a gradient is wanted, the rows are joined and the layers run one by one.

    Args:
        request: (R, d_u) float, the first columns of the input.
        items: (N, d - d_u), the other columns of the candidates, request by request.
        counts: (R,) int64, candidates of each request; they add up to N.
        low_rank, attention, temperature, log_temperatures, token_dim, skip, merge: as
            :func:`residual_cross_net`. One of the stacks may be empty; ``merge`` is then unused.
        weight: (m, out_dim), or None for the result of the net itself.
        bias: (m,), or None.

    Returns:
        (N, m), or (N, out_dim) without ``weight``.

    Raises:
        ValueError: shapes do not fit, a count is negative, or the counts do not add up to N.
        TypeError: a dtype does not fit.

    Source: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
    """
    a = residual_cross_score.op.call(
        request, items, counts, low_rank, attention, temperature, log_temperatures, token_dim,
        skip, merge, weight, bias,
    )  # fmt: skip
    scales = [float(t.exp()) for t in log_temperatures] or [temperature] * (len(attention) // 5)
    return _joined(a, scales, low_rank_cross.op.reference, OPS["attention_cross"].reference)


def _joined(a: Any, scales: list, low_rank: Callable, attention: Callable) -> Tensor:
    """The net on joined rows, by functions for one layer."""
    check_counts(a)
    rows = torch.arange(len(a.counts), device=a.counts.device)
    rows = torch.repeat_interleave(rows, a.counts, output_size=len(a.items))
    x0 = torch.cat([a.request[rows], a.items], dim=1)
    stacks = []
    if a.low_rank:
        x = x0
        for i in range(0, len(a.low_rank), 3):
            x = low_rank(x0, x, *a.low_rank[i : i + 3])
        stacks.append(x)
    if a.attention:
        x = x0
        for i, scale in enumerate(scales):
            x = attention(x0, x, *a.attention[5 * i : 5 * i + 5], scale, a.token_dim, a.skip)
        stacks.append(x)
    if len(stacks) == 1:
        out = stacks[0]
    elif a.merge == 2:
        out = torch.cat(stacks, dim=1)
    else:
        out = (stacks[0] + stacks[1]) / (1 + a.merge)
    return out if a.weight is None else linear(out, a.weight, a.bias)


def check_counts(a: Any) -> None:
    """Refuse counts that are negative or do not add up to the rows of ``items``."""
    if fault := fault_of(a.counts.tolist(), len(a.items)):
        refuse(a, "counts", "wanted {}, got {}".format(*fault))


def fault_of(counts: list[int], items: int) -> tuple[str, str] | None:
    """What was wanted and what was got, where counts are not those of so many candidates."""
    if min(counts, default=0) < 0:
        return "no negative number", str(min(counts))
    if sum(counts) != items:
        return f"numbers that add up to the {items} rows of items", f"a sum of {sum(counts)}"
    return None


residual_cross_score.autocast("lower")


@residual_cross_score.check
def _(a):
    check_floating(a, "request")
    for name in ("request", "items"):
        check_dtype(a, name, a.request.dtype)
        check_dim(a, name, 2)
        t = getattr(a, name)
        check(t.shape[1] > 0, a, name, "a width of at least 1", shape(t))
        check_device(a, name, a.request.device)
    check_dtype(a, "counts", torch.int64)
    check_dim(a, "counts", 1)
    check(a.counts.shape[0] == a.request.shape[0], a, "counts", f"shape ({a.request.shape[0]},)")
    check_device(a, "counts", a.request.device)
    # One row as wide as the input, for the checks that all nets share.
    width = a.request.shape[1] + a.items.shape[1]
    check_layers(a, a.request.new_empty(1, width), either=True)
    if a.weight is None:
        check(a.bias is None, a, "bias", "None without a weight")
        return
    check_dtype(a, "weight", a.request.dtype)
    check_dim(a, "weight", 2)
    wide = _out_dim(a)
    check(a.weight.shape[1] == wide, a, "weight", f"shape (m, {wide})")
    check_device(a, "weight", a.request.device)
    if a.bias is not None:
        check_dtype(a, "bias", a.request.dtype)
        check(a.bias.shape == a.weight.shape[:1], a, "bias", f"shape ({a.weight.shape[0]},)")
        check_device(a, "bias", a.request.device)


def _out_dim(a: Any) -> int:
    width = a.request.shape[1] + a.items.shape[1]
    return 2 * width if a.merge == 2 and a.low_rank and a.attention else width


@residual_cross_score.fake
def _(a):
    wide = _out_dim(a) if a.weight is None else a.weight.shape[0]
    return a.items.new_empty(a.items.shape[0], wide)


@residual_cross_score.in_parts
def _(a):
    layers = len(a.attention) // 5
    scales = [t.exp() for t in a.log_temperatures] or [a.temperature] * layers
    return _joined(a, scales, low_rank_cross, attention_cross)


@residual_cross_score.flops
def _(a) -> int:
    # As on joined rows; what the kernels share depends on the counts.
    rows, width = a.items.shape[0], a.request.shape[1] + a.items.shape[1]
    outer = 0 if a.weight is None else 2 * rows * a.weight.numel()
    return net_flops(a, rows, width) + outer
