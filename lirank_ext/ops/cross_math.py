"""Small pieces of the cross ops' definitions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def widen(*tensors: Tensor | None) -> list[Tensor | None]:
    """Half precision as float32, the rest as it is."""
    half = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in half else t for t in tensors]


def plus(t: Tensor, bias: Tensor | None) -> Tensor:
    return t if bias is None else t + bias


def scores(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """(B, h, h) weights of h keys for each of h queries; q and k are (B, h, token_dim)."""
    scale = temperature * math.sqrt(q.shape[-1])
    return torch.softmax(q @ k.transpose(1, 2) / scale, dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, temperature: float, token_dim: int) -> Tensor:
    """Attention among the tokens of one row: (B, r) to (B, r)."""
    q, k, v = (t.reshape(tokens(t, token_dim)) for t in (q, k, v))
    return (scores(q, k, temperature) @ v).flatten(1)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, temperature: float, token_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attend` for q, k and v."""
    grad, q, k, v = (t.reshape(tokens(t, token_dim)) for t in (grad, q, k, v))
    a = scores(q, k, temperature)
    da = grad @ v.transpose(1, 2)
    ds = a * (da - (a * da).sum(-1, keepdim=True)) / (temperature * math.sqrt(token_dim))
    gradients = (ds @ k, ds.transpose(1, 2) @ q, a.transpose(1, 2) @ grad)
    return tuple(t.flatten(1) for t in gradients)


def tokens(t: Tensor, token_dim: int) -> tuple[int, int, int]:
    """The shape of a (B, r) tensor seen as tokens."""
    return t.shape[0], t.shape[1] // token_dim, token_dim


def empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, without values: what a fake kernel promises."""
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
