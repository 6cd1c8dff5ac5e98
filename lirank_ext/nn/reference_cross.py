"""The cross layers in eager PyTorch, for reading. ``swap`` replaces them by the fast modules.

They have the parameters and state dicts of the fast modules in ``nn/cross.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cross import AttentionParameters, LowRankParameters, ResidualCrossParameters


class ReferenceLowRankCross(LowRankParameters):
    """:class:`LowRankCross` in eager PyTorch."""

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * (linear(linear(x, self.v), self.u) + self.bias) + x


class ReferenceAttentionCross(AttentionParameters):
    """:class:`AttentionCross` in eager PyTorch; holds B * (rank / token_dim)^2 scores."""

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        value = linear(x, self.v)
        tokens = (len(x), self.rank // self.token_dim, self.token_dim)
        q, k, v = (t.view(tokens) for t in (linear(x, self.q), linear(x, self.k), value))
        scores = q @ k.transpose(1, 2) / (self.temperature * math.sqrt(self.token_dim))
        hidden = (torch.softmax(scores, dim=-1) @ v).reshape(value.shape)
        hidden = hidden + value if self.skip else hidden
        return x0 * (linear(hidden, self.u) + self.bias) + x


class ReferenceResidualCrossNet(ResidualCrossParameters):
    """:class:`ResidualCrossNet` in eager PyTorch."""

    low_rank_type = ReferenceLowRankCross
    attention_type = ReferenceAttentionCross
