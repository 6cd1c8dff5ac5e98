"""Raw inputs of a ranker: numbers normalized, strings hashed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._common import check_number, check_positive, check_shape, refuse


class NumericBatchNorm(nn.Module):
    """Batch norm of numeric inputs that may be missing.

    As ``torch.nn.BatchNorm1d``, but mean and variance are those of the values that are there. A
    value that is not finite is missing and becomes the mean, 0 before ``weight`` and ``bias``. A
    column with fewer than two values in a training batch is normalized by its running statistics,
    and they stay.

    The running statistics are those of all values seen until ``momentum`` weighs more than a
    batch's share of them, so they are right from the first batch on, whatever a column's mean and
    scale: BatchNorm1d starts at mean 0 and variance 1 and forgets that over dozens of batches.

    LiRank lists batch norm on numeric inputs among what made training converge, and normalizes by
    distribution: counts and amounts, which spread over orders of magnitude, belong in ``log``.

    Args:
        num_features: columns F.
        log: columns to map by ``sign(x) * log(1 + |x|)`` first; True for all, False for none.
        eps, momentum, affine: as in ``torch.nn.BatchNorm1d``.

    Raises:
        ValueError: an argument is out of range, or the input is not (B, num_features).

    Source: LiRank (arXiv 2402.06859), on training at scale and on the Feed model.
    """

    running_mean: Tensor
    running_var: Tensor
    num_values: Tensor

    def __init__(
        self,
        num_features: int,
        log: bool | Sequence[int] = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        owner = "NumericBatchNorm"
        check_positive(owner, num_features=num_features)
        check_number(owner, "eps", eps, "a positive number", 0, float("inf"))
        check_number(owner, "momentum", momentum, "a number in (0, 1]", 0, 1, "(]")
        columns = [] if log is False else list(range(num_features) if log is True else log)
        if any(c not in range(num_features) for c in columns):
            refuse(owner, "log", f"columns from 0 to {num_features - 1}", log)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.any_log = bool(columns)
        spread = torch.zeros(num_features, dtype=torch.bool)
        spread[columns] = True
        self.register_buffer("log", spread, persistent=False)
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_values", torch.zeros(num_features, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_features) -> (B, num_features)."""
        check_shape("NumericBatchNorm", "x", x, "B", self.num_features)
        there = x.isfinite()
        # Zeroed before any arithmetic: the gradient of a masked NaN would be NaN as well.
        x = x.masked_fill(~there, 0)
        if self.any_log:
            x = torch.where(self.log, x.sign() * x.abs().log1p(), x)
        if self.training:
            mean, var = self._batch_statistics(x, there)
        else:
            mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
        # The mean goes first: x * a - mean * a would lose a column whose mean is far from 0.
        x = ((x - mean) * (var + self.eps).rsqrt()).masked_fill(~there, 0)
        return x if self.weight is None else x * self.weight + self.bias

    def _batch_statistics(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        count = there.sum(0)
        mean = x.sum(0) / count.clamp(min=1)
        squares = (x - mean).square().masked_fill(~there, 0).sum(0)
        enough = count > 1
        with torch.no_grad():
            seen = self.num_values + count
            share = (count / seen.clamp(min=1)).to(self.running_mean.dtype)
            pace = share.clamp(min=self.momentum) * enough
            unbiased = squares / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), pace)
            self.num_values.copy_(torch.where(enough, seen, self.num_values))
        mean = torch.where(enough, mean, self.running_mean)
        return mean, torch.where(enough, squares / count.clamp(min=1), self.running_var)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum:g}"
