"""Isotonic calibration: a monotone, trainable, piecewise linear map of a logit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, check_floating, shape
from ..library.op import op

# Edges and widths beyond these leave float32's range before the logit does.
LEAST, MOST = 1e-30, 1e30


@op
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
        lower: left edge of the covered range, in logit units; from -1e30 to 1e30.
        step: width of a bucket, in logit units; from 1e-30 to 1e30.
        embedding: shape of ``logits`` + (k,), added to ``weight`` per sample; or None.

    Returns:
        Calibrated logits, shape and dtype of ``logits``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or ``step`` do not fit.

    Examples:
        >>> logits, weight, bias = torch.tensor([-2.0, 0.5, 9.0]), torch.ones(8), torch.zeros(1)
        >>> lirank_ext.isotonic_calibration(logits, weight, bias, lower=-4.0, step=1.0)  # cut at 4
        tensor([-2.0000,  0.5000,  4.0000])
    """
    bucket, v = _buckets(logits, weight, lower, step)
    slope = torch.relu(weight if embedding is None else embedding + weight)
    # Buckets above a logit's own have no part in it, even where their slope is NaN.
    reached = torch.arange(weight.shape[0], device=logits.device) <= bucket
    return torch.where(reached, slope * v, 0.0).sum(-1) + lower + bias.reshape(())


def _buckets(logits: Tensor, weight: Tensor, lower: float, step: float) -> tuple[Tensor, Tensor]:
    """The bucket of each logit, and (*logits.shape, k): how far it reaches into every bucket.

    A knot belongs to the bucket at its right, and so does the derivative there: a clamp of each
    bucket's share by itself would count both sides.
    """
    k = weight.shape[0]
    z = (logits.clamp(lower, lower + k * step) - lower).unsqueeze(-1)
    bucket = (z / step).nan_to_num(0.0).floor().clamp(0, k - 1).long()
    i = torch.arange(k, device=logits.device)
    part = z - i.to(z.dtype) * step
    return bucket, torch.where(i == bucket, part, step * (i < bucket).to(z.dtype))


@isotonic_calibration.check
def _check(a) -> None:
    check_floating(a, "logits")
    check_dim(a, "weight", 1)
    check(a.weight.shape[0] > 0, a, "weight", "at least one bucket")
    check(a.weight.shape[0] < 1 << 24, a, "weight", "fewer than 2^24 buckets")
    check_dtype(a, "weight", a.logits.dtype)
    check_dtype(a, "bias", a.logits.dtype)
    check(a.bias.numel() == 1 and a.bias.dim() <= 1, a, "bias", "shape () or (1,)")
    check(LEAST <= a.step <= MOST, a, "step", f"a number from {LEAST:g} to {MOST:g}")
    check(-MOST <= a.lower <= MOST, a, "lower", f"a number from {-MOST:g} to {MOST:g}")
    check_device(a, "weight", a.logits.device)
    check_device(a, "bias", a.logits.device)
    if a.embedding is not None:
        check_device(a, "embedding", a.logits.device)
        check_dtype(a, "embedding", a.logits.dtype)
        wanted = (*a.logits.shape, a.weight.shape[0])
        fits = a.embedding.dim() == len(wanted) and all(
            size == want for size, want in zip(a.embedding.shape, wanted, strict=True)
        )
        text = f"the shape of logits with a last axis of {wanted[-1]}"
        got = f"{shape(a.embedding)} for logits {shape(a.logits)}"
        check(fits, a, "embedding", text, got)


isotonic_calibration.autocast("float32")


@isotonic_calibration.fake
def _(a):
    return torch.empty_like(a.logits, memory_format=torch.contiguous_format)


@op(internal=True)
def isotonic_calibration_backward(
    grad: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    lower: float,
    step: float,
    embedding: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for logits, weight, bias and embedding (zeros (k,) where there is none)."""
    k = weight.shape[0]
    bucket, v = _buckets(logits, weight, lower, step)
    slope = (weight if embedding is None else embedding + weight).expand(*logits.shape, k)
    here = slope.gather(-1, bucket).squeeze(-1).relu()
    inside = (logits >= lower) & (logits <= lower + k * step)
    grad_logits = torch.where(inside, grad * here, torch.zeros_like(grad))
    grad_slope = grad.unsqueeze(-1) * v * (slope > 0)
    grad_weight = grad_slope.reshape(-1, k).sum(0)
    grad_embedding = torch.zeros_like(weight) if embedding is None else grad_slope
    return grad_logits, grad_weight, grad.sum().reshape(bias.shape), grad_embedding


@isotonic_calibration_backward.check
def _(a) -> None:
    _check(a)
    check_dtype(a, "grad", a.logits.dtype)
    check(a.grad.shape == a.logits.shape, a, "grad", f"shape {tuple(a.logits.shape)}")
    check_device(a, "grad", a.logits.device)


@isotonic_calibration_backward.fake
def _(a):
    like = (a.logits, a.weight, a.bias, a.weight if a.embedding is None else a.embedding)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


@isotonic_calibration.backward(saves=("logits", "weight", "bias", "embedding"), by_reference=True)
def _(a, grad):
    logits, weight, bias, embedding = isotonic_calibration_backward(grad, *a)
    return {"logits": logits, "weight": weight, "bias": bias, "embedding": embedding}
