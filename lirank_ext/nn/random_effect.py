"""A random effect per id on top of a main model's logit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import ResizingBuffers, check_finite, check_number, check_shape, refuse

# Relative size of the last Newton step. Newton squares the error, so a further step would change
# nothing.
TOLERANCE = 1e-8
CHUNK = 65536  # number of rows whose outer products are held at a time


class RandomEffect(ResizingBuffers):
    """Per-id correction of the main logit: ``sigmoid(logit + b_id + w_id . features)``.

    For each id, :meth:`fit` finds the b and w that minimize the following over the id's rows::

        sum log-loss(sigmoid(logit + b + w . x), y) + l2 / 2 * (b^2 + |w|^2)

    It solves all ids at once by Newton's method, in float64. The main logit is fixed, so the effect
    learns the main model's residual. An id that was not fitted has no correction. LiRank refits
    its post model every eight hours, for likes and clicks. Use one module per task. The paper does
    not give the penalty, so ``l2=1`` (a standard normal prior) is a free choice.

    Args:
        num_features: number of features that have a weight per id. With 0 each id has only an
            intercept.
        l2: strength of the penalty, positive.
        max_iterations: largest number of Newton steps. Every step is halved until the loss falls.

    Attributes:
        ids: (E,) int64, sorted.
        coefficients: (E, 1 + num_features), the intercept and then the weights.

    Raises:
        ValueError, TypeError: an argument is out of range or shapes do not fit.

    Source: LiRank (arXiv 2402.06859), on wide popularity (the "Root Object" model).
    """

    ids: Tensor
    coefficients: Tensor

    def __init__(self, num_features: int = 0, l2: float = 1.0, max_iterations: int = 100) -> None:
        super().__init__()
        inf = float("inf")
        check_number("RandomEffect", "num_features", num_features, "0 or more", 0, inf, "[)")
        check_number("RandomEffect", "l2", l2, "a positive number", 0, inf)
        check_number("RandomEffect", "max_iterations", max_iterations, "1 or more", 1, inf, "[)")
        self.num_features, self.l2, self.max_iterations = num_features, l2, max_iterations
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("coefficients", torch.zeros(0, 1 + num_features))

    def __len__(self) -> int:
        """Number of ids with a correction."""
        return len(self.ids)

    def forward(self, logit: Tensor, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """logit, ids: (B,); features: (B, num_features) -> corrected logit (B,)."""
        self._check(logit, ids, features)
        if len(self.ids) == 0:
            return logit.clone()
        row = torch.searchsorted(self.ids, ids.long()).clamp(max=len(self.ids) - 1)
        found = (self.ids[row] == ids).unsqueeze(1)
        theta = self.coefficients[row].to(logit.dtype).masked_fill(~found, 0)
        extra = theta[:, 0]
        if features is not None:
            extra = extra + (theta[:, 1:] * features).sum(1)
        return logit + extra

    def _check(self, logit: Tensor, ids: Tensor, features: Tensor | None) -> None:
        owner = "RandomEffect"
        check_shape(owner, "logit", logit, "B")
        check_shape(owner, "ids", ids, logit.shape[0])
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            refuse(owner, "ids", "whole numbers", ids.dtype, TypeError)
        if (features is None) != (self.num_features == 0):
            wanted = f"shape (B, {self.num_features})" if self.num_features else "None"
            refuse(owner, "features", wanted, None if features is None else tuple(features.shape))
        if features is not None:
            check_shape(owner, "features", features, logit.shape[0], self.num_features)

    @torch.no_grad()
    def fit(
        self,
        logit: Tensor,
        ids: Tensor,
        targets: Tensor,
        features: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> int:
        """Replace all corrections by those fitted to these rows.

        Args:
            logit: (n,) logits of the main model.
            ids: (n,) whole numbers, in any order.
            targets: (n,) in [0, 1].
            features: (n, num_features), or None if ``num_features`` is 0.
            weights: (n,) weight of each row, 0 or more. None means 1.

        Returns:
            The number of Newton steps taken.

        Raises:
            RuntimeError: no convergence within ``max_iterations``. The old corrections are kept.
        """
        self._check(logit, ids, features)
        weights = torch.ones_like(logit) if weights is None else weights
        for name, t in (("targets", targets), ("weights", weights)):
            check_shape("RandomEffect", name, t, len(logit))
        if targets.numel() and not bool(((targets >= 0) & (targets <= 1)).all()):
            bad = targets[~((targets >= 0) & (targets <= 1))][0].item()
            refuse("RandomEffect", "targets", "numbers in [0, 1]", bad)
        if not bool((weights >= 0).all()):
            refuse("RandomEffect", "weights", "0 or more", weights[~(weights >= 0)][0].item())
        x = logit.new_ones(len(logit), 1)
        x = (x if features is None else torch.cat([x, features], 1)).double()
        for name, t in (("logit", logit), ("features", x), ("weights", weights)):
            check_finite("RandomEffect", name, t)
        known, row = torch.unique(ids.long(), return_inverse=True)
        problem = _Residual(
            len(known), row, x, logit.double(), targets.double(), weights.double(), self.l2
        )
        theta, steps = problem.solve(self.max_iterations)
        self.ids, self.coefficients = known, theta.to(self.coefficients.dtype)
        return steps

    def extra_repr(self) -> str:
        return f"{len(self)} ids, num_features={self.num_features}, l2={self.l2:g}"


class _Residual:
    """One penalized logistic regression per id. All of them are solved together."""

    def __init__(self, count: int, row: Tensor, x: Tensor, offset, target, weight, l2) -> None:
        self.row, self.x, self.offset, self.target, self.weight = row, x, offset, target, weight
        self.theta, self.l2 = x.new_zeros(count, x.shape[1]), l2

    def margin(self, theta: Tensor) -> Tensor:
        return self.offset + (theta[self.row] * self.x).sum(1)

    def loss(self, theta: Tensor) -> Tensor:
        """(E,)."""
        margin = self.margin(theta)
        each = self.weight * (F.softplus(margin) - self.target * margin)
        penalty = self.l2 / 2 * theta.square().sum(1)
        return penalty.index_add(0, self.row, each)

    def newton_step(self, theta: Tensor) -> Tensor:
        p = self.margin(theta).sigmoid()
        slope = (self.weight * (self.target - p)).unsqueeze(1) * self.x
        gradient = (-self.l2 * theta).index_add(0, self.row, slope)
        eye = torch.eye(theta.shape[1], dtype=theta.dtype, device=theta.device)
        hessian = (self.l2 * eye).repeat(len(theta), 1, 1)
        curve = self.weight * p * (1 - p)
        for at in range(0, len(self.row), CHUNK):
            rows = slice(at, at + CHUNK)
            x = self.x[rows]
            outer = curve[rows, None, None] * x.unsqueeze(2) * x.unsqueeze(1)
            hessian.index_add_(0, self.row[rows], outer)
        return torch.linalg.solve(hessian, gradient)

    def solve(self, most: int) -> tuple[Tensor, int]:
        loss = self.loss(self.theta)
        for count in range(most):
            step = self.newton_step(self.theta)
            small = step.abs() <= TOLERANCE * (1 + self.theta.abs())
            if bool(small.all()):
                return self.theta + step, count
            # Far from the optimum Newton may overshoot, so halve the step until the loss falls.
            for _ in range(60):
                tried = self.loss(self.theta + step)
                worse = tried > loss + 1e-12 * (1 + loss)
                if not bool(worse.any()):
                    break
                step[worse] /= 2
            self.theta, loss = self.theta + step, self.loss(self.theta + step)
        raise RuntimeError(f"RandomEffect: no convergence in {most} Newton steps")
