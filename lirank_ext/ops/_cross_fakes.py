"""What the cross ops promise: shapes and dtypes, on meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ._cross_checks import (
    check_attention,
    check_cross,
    check_grad,
    check_net,
    check_tokens,
    kept_columns,
)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)


def low_rank_cross_fake(x0, x, v, u, bias):
    check_cross("low_rank_cross", x0, x, {"v": v}, u, bias)
    return _like(x0)[0]


def low_rank_cross_train_fake(x0, x, v, u, bias):
    out = low_rank_cross_fake(x0, x, v, u, bias)
    return out, x.new_empty(x.shape[0], kept_columns(x.shape[1], v.shape[0]))


def low_rank_cross_backward_fake(grad, x0, x, v, u, bias, hidden=None):
    check_cross("low_rank_cross_backward", x0, x, {"v": v}, u, bias)
    check_grad("low_rank_cross_backward", grad, x0)
    return (*_like(x0, x, v, u), u.new_empty(u.shape[0]))


def outer_attention_fake(q, k, v, temperature=1.0, token_dim=1):
    check_attention("outer_attention", q, k, v, temperature, token_dim)
    return _like(q)[0]


def outer_attention_backward_fake(grad, q, k, v, temperature=1.0, token_dim=1):
    check_attention("outer_attention_backward", q, k, v, temperature, token_dim)
    check_grad("outer_attention_backward", grad, q)
    return _like(q, k, v)


def attention_cross_fake(x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True):
    op = "attention_cross"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    return _like(x0)[0]


def attention_cross_train_fake(x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True):
    out = attention_cross_fake(x0, x, q, k, v, u, bias, temperature, token_dim, skip)
    batch, rank = x.shape[0], v.shape[0]
    return out, x.new_empty(batch, 3 * rank), x.new_empty(batch, rank)


def attention_cross_backward_fake(
    grad, x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True, hidden=None, mixed=None
):
    op = "attention_cross_backward"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    check_grad(op, grad, x0)
    return (*_like(x0, x, q, k, v, u), u.new_empty(u.shape[0]))


def residual_cross_net_fake(
    x, low_rank, attention, temperature, log_temperatures, token_dim=1, skip=True, merge=0
):
    check_net(x, low_rank, attention, temperature, log_temperatures, token_dim, merge)
    return x.new_empty(x.shape[0], x.shape[1] * (2 if merge == 2 else 1))
