"""Batch norms whose batch is spread over several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.inputs import NumericBatchNorm

Exchange = Callable[[Tensor], Tensor]


def share_statistics(model: nn.Module, gather: Exchange, add: Exchange) -> None:
    """Make the batch norms of a model take mean and variance over the rows of all processes.

    Args:
        model: in every process the same.
        gather: (...) -> (processes, ...), the tensors of all.
        add: the sum of the tensors of all.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.forward = partial(_batch_norm, module, gather, add)
        elif isinstance(module, NumericBatchNorm):
            module.moments = partial(_moments, gather)


def _merged(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of parts (P, ...), taken together.

    Source: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub
    and LeVeque 1979).
    """
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


def _moments(gather: Exchange, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:meth:`NumericBatchNorm.moments` of the rows of all processes."""
    parts = gather(torch.stack([t.double() for t in NumericBatchNorm.moments(x, there)]))
    count, mean, squares = _merged(*parts.unbind(1))
    return count.long(), mean.to(x.dtype), squares.to(x.dtype)


def _batch_norm(norm: nn.BatchNorm1d, gather: Exchange, add: Exchange, x: Tensor) -> Tensor:
    """The forward of a batch norm."""
    if not norm.training:
        return type(norm).forward(norm, x)
    normalized, count, mean, squares = _Normalize.apply(x, norm.eps, gather, add)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(squares / (count - 1).clamp(min=1), norm.momentum)
    return (normalized * norm.weight + norm.bias).to(x.dtype)


class _Normalize(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps)`` over the rows of all processes, with one exchange a pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, gather: Exchange, add: Exchange
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = x.new_full((x.shape[1],), len(x))
        mean = x.sum(0) / rows.clamp(min=1)
        parts = gather(torch.stack([rows, mean, (x - mean).square().sum(0)]))
        count, mean, squares = _merged(*parts.unbind(1))
        inverse = (squares / count.clamp(min=1) + eps).rsqrt()
        normalized = (x - mean) * inverse
        ctx.add = add
        ctx.save_for_backward(normalized, inverse, count)
        ctx.mark_non_differentiable(count, mean, squares)
        return normalized, count, mean, squares

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        normalized, inverse, count = ctx.saved_tensors
        sums = ctx.add(torch.stack([grad.sum(0), (grad * normalized).sum(0)]))
        shift, slope = sums / count.clamp(min=1)
        return inverse * (grad - shift - normalized * slope), None, None, None
