"""Isotonic calibration: a monotone, trainable, piecewise linear map of a logit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, check_floating
from ..library.op import register


def isotonic_calibration(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    lower: float,
    step: float,
    embedding: Tensor | None = None,
) -> Tensor:
    """Calibrate logits with non-negative slopes per bucket (LiRank, equation 1).

    With ``z = clamp(logits, lower, lower + k * step) - lower`` and
    ``v_i = clamp(z - i * step, 0, step)``::

        result = sum_i relu(embedding_i + weight_i) * v_i + lower + bias

    ``weight = 1``, ``bias = 0`` is the identity on ``[lower, lower + k * step]``. At a knot
    the gradient is that of the bucket to its right.

    Args:
        logits: (B,), or any shape; floating.
        weight: (k,) slope of each bucket, before the ReLU; dtype of ``logits``.
        bias: () or (1,).
        lower: left edge of the covered range, in logit units.
        step: width of a bucket, in logit units; positive.
        embedding: shape of ``logits`` + (k,), added to ``weight`` per sample; or None.

    Returns:
        Calibrated logits, shape and dtype of ``logits``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or ``step`` do not fit.
    """
    return _op(logits, weight, bias, lower, step, embedding)


def _check(
    op: str,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    step: float,
    embedding: Tensor | None,
) -> None:
    check_floating(op, "logits", logits)
    check_dim(op, "weight", weight, 1)
    check(weight.shape[0] > 0, op, "weight", "at least one bucket", weight)
    check(weight.shape[0] < 1 << 24, op, "weight", "fewer than 2^24 buckets", weight)
    check_dtype(op, "weight", weight, logits.dtype)
    check_dtype(op, "bias", bias, logits.dtype)
    check(bias.numel() == 1 and bias.dim() <= 1, op, "bias", "shape () or (1,)", bias)
    check(step > 0, op, "step", "a positive number", step)
    for name, t in (("weight", weight), ("bias", bias), ("embedding", embedding)):
        if t is not None:
            check_device(op, name, t, logits.device)
    if embedding is not None:
        check_dtype(op, "embedding", embedding, logits.dtype)
        wanted = (*logits.shape, weight.shape[0])
        fits = embedding.dim() == len(wanted) and all(
            a == b for a, b in zip(embedding.shape, wanted, strict=True)
        )
        check(fits, op, "embedding", f"shape {wanted}", embedding)


def reference(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    lower: float,
    step: float,
    embedding: Tensor | None = None,
) -> Tensor:
    """The definition, O(B * k)."""
    _check("isotonic_calibration", logits, weight, bias, step, embedding)
    k = weight.shape[0]
    z = logits.clamp(lower, lower + k * step) - lower
    i = torch.arange(k, dtype=logits.dtype, device=logits.device)
    v = (z.unsqueeze(-1) - i * step).clamp(0, step)
    slope = torch.relu(weight if embedding is None else embedding + weight)
    return (slope * v).sum(-1) + lower + bias.reshape(())


def _fake(logits, weight, bias, lower, step, embedding=None):
    _check("isotonic_calibration", logits, weight, bias, step, embedding)
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def backward_reference(
    grad: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    lower: float,
    step: float,
    embedding: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for logits, weight, bias and embedding (zeros (k,) where there is none)."""
    _check("isotonic_calibration_backward", logits, weight, bias, step, embedding)
    k = weight.shape[0]
    upper = lower + k * step
    z = logits.clamp(lower, upper) - lower
    i = torch.arange(k, dtype=logits.dtype, device=logits.device)
    v = (z.unsqueeze(-1) - i * step).clamp(0, step)
    bucket = (z / step).nan_to_num(0.0).floor().clamp(0, k - 1).long()
    slope = (weight if embedding is None else embedding + weight).expand(*logits.shape, k)
    here = slope.gather(-1, bucket.unsqueeze(-1)).squeeze(-1).relu()
    inside = (logits >= lower) & (logits <= upper)
    grad_logits = torch.where(inside, grad * here, torch.zeros_like(grad))
    grad_slope = grad.unsqueeze(-1) * v * (slope > 0)
    grad_weight = grad_slope.reshape(-1, k).sum(0)
    grad_embedding = torch.zeros_like(weight) if embedding is None else grad_slope
    return grad_logits, grad_weight, grad.sum().reshape(bias.shape), grad_embedding


def _backward_fake(grad, logits, weight, bias, lower, step, embedding=None):
    _check("isotonic_calibration_backward", logits, weight, bias, step, embedding)
    like = weight if embedding is None else embedding
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (logits, weight, bias, like)
    )


def _setup_context(ctx, inputs, output):
    logits, weight, bias, ctx.lower, ctx.step, embedding = inputs
    ctx.save_for_backward(logits, weight, bias, embedding)


def _backward(ctx, grad):
    logits, weight, bias, embedding = ctx.saved_tensors
    gradients = _backward_op(grad, logits, weight, bias, ctx.lower, ctx.step, embedding)
    grad_logits, grad_weight, grad_bias, grad_embedding = gradients
    return (
        grad_logits,
        grad_weight,
        grad_bias,
        None,
        None,
        None if embedding is None else grad_embedding,
    )


_backward_op = register(
    "isotonic_calibration_backward(Tensor grad, Tensor logits, Tensor weight, Tensor bias, "
    "float lower, float step, Tensor? embedding=None) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=backward_reference,
    fake=_backward_fake,
    internal=True,
)
_op = register(
    "isotonic_calibration(Tensor logits, Tensor weight, Tensor bias, float lower, float step, "
    "Tensor? embedding=None) -> Tensor",
    reference=reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
