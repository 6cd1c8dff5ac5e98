"""Small pieces of the cross ops' definitions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """Half precision as float32, the rest as it is."""
    half = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in half else t for t in tensors]


def plus(t: Tensor, bias: Tensor | None) -> Tensor:
    return t if bias is None else t + bias


def scores(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    scale = temperature * math.sqrt(q.shape[-1])
    return torch.softmax(q @ k.transpose(1, 2) / scale, dim=-1)
