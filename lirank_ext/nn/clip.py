"""Clipping of gradients, some of which are sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .fused_update import any_moves


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_``, which refuses sparse gradients, for these too.

    A sparse gradient counts by its values, once it is coalesced: all its other elements are zero.

    Args:
        parameters: those whose gradients are scaled, in place.
        max_norm: largest norm of all gradients together.
        norm_type: of the norm; ``float("inf")`` is the largest absolute value.
        error_if_nonfinite: raise where the norm is not finite.

    Returns:
        The norm before the scaling.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite`` is set.
        ValueError: the backward pass moves a parameter, so that it has no gradient to clip.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if any_moves(parameters):
        raise ValueError(
            "clip_grad_norm_: argument 'parameters': wanted gradients, got a table that its "
            "backward pass has moved already: leave it out, or call optimizer.unfuse(module)"
        )
    values = []
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.coalesce()
            values.append(p.grad.values())
        elif p.grad is not None:
            values.append(p.grad)
    total = torch.nn.utils.get_total_norm(values, norm_type, error_if_nonfinite)
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for v in values:
        v.mul_(scale.to(v.device))
    return total
