"""Isotonic calibration as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.isotonic import isotonic_calibration
from ._common import keep_axis


class IsotonicParameters(nn.Module):
    """Parameters of an isotonic calibration, and the linear map of its calibration features."""

    def __init__(
        self,
        lower: float,
        upper: float,
        step: float,
        num_features: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if step <= 0 or upper <= lower:
            raise ValueError(
                f"{name}: wanted step > 0 and upper > lower, "
                f"got step {step}, lower {lower}, upper {upper}"
            )
        buckets = round((upper - lower) / step)
        if buckets < 1 or abs(buckets * step - (upper - lower)) > 1e-6 * (upper - lower):
            raise ValueError(
                f"{name}: step: wanted a divisor of upper - lower = {upper - lower}, got {step}"
            )
        if num_features < 0:
            raise ValueError(f"{name}: num_features: wanted 0 or more, got {num_features}")
        self.lower, self.step, self.num_features = float(lower), float(step), num_features
        self.weight = nn.Parameter(torch.ones(buckets, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.features = None
        if num_features:
            self.features = nn.Linear(num_features, buckets, bias=False, device=device, dtype=dtype)
            nn.init.zeros_(self.features.weight)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        keep_axis(self, "bias", state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def added(self, features: Tensor | None, embedding: Tensor | None) -> Tensor | None:
        """The tensor to add to the weights of each sample: (B, k), or None."""
        name = type(self).__name__
        if features is not None and (self.features is None or embedding is not None):
            given = "None" if embedding is None else "given"
            raise ValueError(
                f"{name}: features: wanted None with num_features={self.num_features} and "
                f"embedding {given}, got shape {tuple(features.shape)}"
            )
        if self.features is not None and features is None and embedding is None:
            raise ValueError(f"{name}: features: wanted (B, {self.num_features}), got None")
        return embedding if features is None else self.features(features)

    def extra_repr(self) -> str:
        buckets = self.weight.shape[0]
        return f"lower={self.lower}, step={self.step}, buckets={buckets}"


class IsotonicCalibration(IsotonicParameters):
    """A monotone, piecewise linear map of a logit, trained jointly with the model.

    It computes ``sum_i relu(e_i + weight_i) * v_i + lower + bias`` over
    ``k = (upper - lower) / step`` buckets. It starts as the identity on [lower, upper], with
    weights 1 and bias 0. Logits outside of that range are clamped. With ``num_features`` > 0, ``e``
    is a linear map of calibration features such as device or channel. The map has no bias and
    starts at zero.

    Args:
        lower, upper: covered range in logit units. The follow-up paper uses -17 and 8.
        step: bucket width in logit units, which must divide the range. The follow-up paper uses
            0.05.
        num_features: width of the calibration features, 0 for none.

    Source: LiRank (arXiv 2402.06859), equation 1; arXiv 2603.06589.

    Examples:
        >>> calibration = lirank_ext.nn.IsotonicCalibration(lower=-8.0, upper=8.0, step=0.5)
        >>> calibration(torch.tensor([-1.0, 0.0, 3.0])).detach()  # the identity before training
        tensor([-1.,  0.,  3.])
    """

    def forward(
        self, logits: Tensor, features: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        """Calibrated logits, shape of ``logits`` (B,).

        Args:
            logits: (B,).
            features: (B, num_features). They are required if ``num_features`` > 0, unless
                ``embedding`` is given, and refused otherwise.
            embedding: (B, k), a ready-made ``e`` to use instead of features.
        """
        added = self.added(features, embedding)
        return isotonic_calibration(logits, self.weight, self.bias, self.lower, self.step, added)
