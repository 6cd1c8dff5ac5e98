"""Isotonic calibration in eager PyTorch, for reading. ``swap`` replaces it by the fast module.

It has the parameters and the state dict of the fast module in ``nn/isotonic.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .isotonic import IsotonicParameters


class ReferenceIsotonicCalibration(IsotonicParameters):
    """:class:`IsotonicCalibration` in eager PyTorch. It computes all B * k buckets."""

    def forward(
        self, logits: Tensor, features: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        added = self.added(features, embedding)
        weight = self.weight if added is None else added + self.weight
        buckets = len(self.weight)
        edges = torch.arange(buckets, device=logits.device, dtype=logits.dtype) * self.step
        z = logits.clamp(self.lower, self.lower + buckets * self.step) - self.lower
        filled = (z.unsqueeze(-1) - edges).clamp(0.0, self.step)
        return (weight.relu() * filled).sum(-1) + self.lower + self.bias
