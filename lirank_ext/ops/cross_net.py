"""All layers of a residual cross net in one op, for serving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..library.op import OPS, op
from .cross import low_rank_cross
from .cross_attention import attention_cross
from .cross_checks import check_net


@op(family="cross", internal=True)
def residual_cross_net(
    x: Tensor,
    low_rank: list[Tensor],
    attention: list[Tensor],
    temperature: float,
    log_temperatures: list[Tensor],
    token_dim: int = 1,
    skip: bool = True,
    merge: int = 0,
) -> Tensor:
    """Two stacks on the same input: serving in one call.

    Where a gradient is wanted, the layers run one by one.

    Args:
        x: (B, d).
        low_rank: v, u, bias of each layer.
        attention: q, k, v, u, bias of each layer.
        temperature: serves all layers where ``log_temperatures`` is empty.
        log_temperatures: one 0-d tensor per attention layer, or empty.
        token_dim, skip: as :func:`attention_cross`.
        merge: 0 sum, 1 mean, 2 concatenation.

    Returns:
        (B, d), or (B, 2d) for a concatenation.
    """
    scales = [float(t.exp()) for t in log_temperatures] or [temperature] * (len(attention) // 5)
    a = residual_cross_net.op.call(
        x, low_rank, attention, temperature, log_temperatures, token_dim, skip, merge
    )
    return _stacks(a, scales, low_rank_cross.op.reference, OPS["attention_cross"].reference)


def _stacks(a, scales, low_rank: Callable[..., Tensor], attention: Callable[..., Tensor]) -> Tensor:
    """Both stacks by functions for one layer, and how they merge."""
    low, high = a.x, a.x
    for i in range(0, len(a.low_rank), 3):
        low = low_rank(a.x, low, *a.low_rank[i : i + 3])
    for i, scale in enumerate(scales):
        layer = a.attention[5 * i : 5 * i + 5]
        high = attention(a.x, high, *layer, scale, a.token_dim, a.skip)
    if a.merge == 2:
        return torch.cat([low, high], dim=-1)
    return (low + high) / (1 + a.merge)


residual_cross_net.check(check_net)
residual_cross_net.autocast("lower")


@residual_cross_net.flops
def _(a) -> int:
    return net_flops(a, *a.x.shape)


def net_flops(a: Any, rows: int, width: int) -> int:
    """Floating-point operations of both stacks of ``a`` on rows of that width."""
    total = sum(4 * rows * width * v.shape[0] for v in a.low_rank[::3])
    for q in a.attention[::5]:
        rank = q.shape[0]
        total += 8 * rows * width * rank + 4 * rows * rank * (rank // a.token_dim)
    return total


@residual_cross_net.fake
def _(a):
    return a.x.new_empty(a.x.shape[0], a.x.shape[1] * (2 if a.merge == 2 else 1))


def in_parts(a, low_rank: Callable[..., Tensor], attention: Callable[..., Tensor]) -> Tensor:
    """Both stacks by functions for one layer; learned temperatures stay tensors."""
    layers = len(a.attention) // 5
    scales = [t.exp() for t in a.log_temperatures] or [a.temperature] * layers
    return _stacks(a, scales, low_rank, attention)


@residual_cross_net.in_parts
def _(a):
    return in_parts(a, low_rank_cross, attention_cross)
