"""Normalization of a ranker's numeric inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ._common import ConstantBuffers, check_number, check_positive, check_shape, refuse


class NumericBatchNorm(ConstantBuffers):
    """Batch norm of numeric inputs that may be missing.

    It works like ``torch.nn.BatchNorm1d``, but mean and variance are computed from the values that
    are present. A value that is not finite counts as missing and is replaced by the mean, which is
    0 before ``weight`` and ``bias``. A column with fewer than two values in a training batch is
    normalized by its running statistics, which then do not change.

    At first the running statistics weigh all values equally. Once a batch's share of all values
    falls below ``momentum``, they become a moving average. They are therefore correct from the
    first batch on, whatever the mean and scale of a column. BatchNorm1d starts at mean 0 and
    variance 1 instead, and forgets these only over dozens of batches.

    LiRank lists batch norm on numeric inputs among the changes that made training converge, and it
    normalizes each input by its distribution. Counts and amounts, which span orders of magnitude,
    belong in ``log``.

    Args:
        num_features: number of columns F.
        log: columns to map by ``sign(x) * log(1 + |x|)`` first. True means all, False none.
        eps, momentum, affine: as in ``torch.nn.BatchNorm1d``.

    Raises:
        ValueError: an argument is out of range, or the input is not (B, num_features).

    Source: LiRank (arXiv 2402.06859), on training at scale and on the Feed model.
    """

    log: Tensor
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
        self.constant("log", [c in columns for c in range(num_features)])
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_values", torch.zeros(num_features, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_features) -> (B, num_features)."""
        check_shape("NumericBatchNorm", "x", x, "B", self.num_features)
        return self._normalize(x, lambda t: t)

    def of_columns(self, x: Tensor, columns: Callable[[Tensor], Tensor]) -> Tensor:
        """Some of the columns alone, in evaluation.

        Args:
            x: (B, n).
            columns: takes these columns out of a tensor that has one number for each of all.
        """
        if self.training:
            text = "NumericBatchNorm: some columns alone can only be normalized in evaluation"
            raise RuntimeError(f"{text}; call eval() first")
        return self._normalize(x, columns)

    def _normalize(self, x: Tensor, columns: Callable[[Tensor], Tensor]) -> Tensor:
        there = x.isfinite()
        # Missing values are zeroed before any arithmetic: masked later, a NaN would still make the
        # gradients NaN.
        x = x.masked_fill(~there, 0)
        if self.any_log:
            x = torch.where(columns(self.log), x.sign() * x.abs().log1p(), x)
        if self.training:
            mean, var = self._batch_statistics(x, there)
        else:
            statistics = (self.running_mean, self.running_var)
            mean, var = (columns(t).to(x.dtype) for t in statistics)
        # The mean is subtracted first: x * a - mean * a would round away the values of a column
        # whose mean is far from 0.
        x = ((x - mean) * (var + self.eps).rsqrt()).masked_fill(~there, 0)
        if self.weight is None:
            return x
        return x * columns(self.weight) + columns(self.bias)

    @staticmethod
    def moments(x: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and sum of squared deviations of the present values of each column.

        A training by several processes puts those of all rows in its place.
        """
        count = there.sum(0)
        mean = x.sum(0) / count.clamp(min=1)
        return count, mean, (x - mean).square().masked_fill(~there, 0).sum(0)

    def _batch_statistics(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        count, mean, squares = self.moments(x, there)
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
