"""Neural-Linear exploration: Bayesian linear regression on a network's last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Float64Buffers, check_finite, check_number, check_positive, check_shape, refuse

CHUNK = 65536  # rows turned into float64 at a time
STATE = ("precision", "moment", "squares", "count", "mean", "factor")


class NeuralLinear(Float64Buffers):
    """Exact posterior of the last layer's weights, updated incrementally, for Thompson sampling.

    For features z (dim,), output k and a prior of precision p::

        precision L = p I + sum z z^T        moment f_k = sum y_k z        mean m_k = L^-1 f_k
        w_k ~ N(m_k, s_k L^-1)

    The noise s_k is ``noise_variance``. If that is None, s_k is drawn from its own posterior, the
    inverse gamma with shape ``a + n / 2`` and rate ``b + (sum y_k^2 - m_k^T L m_k) / 2``. The sums
    are float64, even if the module is cast. An update adds to them and solves by Cholesky, so many
    small updates give the same result as one large update. To fit an intercept, add a constant
    feature. LiRank updates the posterior at the end of each training. Its prior and noise are not
    published.

    Args:
        dim: width of the features, which are the input of the last layer.
        num_outputs: number of outputs K. All of them share the features.
        prior_precision: p, positive.
        noise_variance: s, positive and the same for every output. None learns it.
        shape, rate: a and b of the inverse gamma prior (as in Riquelme's public code).
        shared: True keeps one precision for all outputs, and each row has a target for every
            output. False keeps a precision per output, and a row may belong to a single output, as
            with bandit arms.
        forgetting: factor applied to the data's sums before each update, in (0, 1]. 1 forgets
            nothing.

    Attributes:
        precision: (dim, dim), or (K, dim, dim) if not shared. It is float64, like the following.
        moment, mean: (K, dim).
        squares, count: (K,), the sum of y^2 and the number of rows.

    Raises:
        ValueError: an argument is out of range, or features or targets are not finite.

    Source: LiRank (arXiv 2402.06859), on exploration; Riquelme et al. 2018 (arXiv
    1802.09127).
    """

    precision: Tensor
    moment: Tensor
    squares: Tensor
    count: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        prior_precision: float = 1.0,
        *,
        noise_variance: float | None = 1.0,
        shape: float = 6.0,
        rate: float = 6.0,
        shared: bool = True,
        forgetting: float = 1.0,
    ) -> None:
        super().__init__()
        owner, positive, inf = "NeuralLinear", "a positive number", float("inf")
        check_positive(owner, dim=dim, num_outputs=num_outputs)
        numbers = {"prior_precision": prior_precision, "shape": shape, "rate": rate}
        if noise_variance is not None:
            numbers["noise_variance"] = noise_variance
        for name, value in numbers.items():
            check_number(owner, name, value, positive, 0, inf)
        check_number(owner, "forgetting", forgetting, "a number in (0, 1]", 0, 1, "(]")
        self.dim, self.num_outputs, self.shared = dim, num_outputs, shared
        self.prior_precision, self.noise_variance = prior_precision, noise_variance
        self.shape, self.rate, self.forgetting = shape, rate, forgetting
        prior = self._prior("cpu").expand(*(() if shared else (num_outputs,)), dim, dim).clone()
        zeros, per_output = (
            torch.zeros(num_outputs, dim).double(),
            torch.zeros(num_outputs).double(),
        )
        start = (prior, zeros, per_output, per_output, zeros, torch.linalg.cholesky(prior))
        # Mean and factor are saved too, so that a restored module gives the same bits on any
        # machine.
        for name, t in zip(STATE, start, strict=True):
            # Cholesky factors come transposed, and safetensors writes contiguous tensors only.
            self.register_buffer(name, t.clone(memory_format=torch.contiguous_format))

    def _prior(self, device: torch.device | str) -> Tensor:
        eye = torch.eye(self.dim, dtype=torch.float64, device=device)
        return self.prior_precision * eye

    def forward(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scores under the posterior mean, or under weights drawn by :meth:`sample`.

        Args:
            features: (B, dim), any floating dtype.
            weights: (K, dim) or (n, K, dim). None takes the posterior mean.

        Returns:
            (B, K), or (n, B, K), in the dtype of ``features``.
        """
        check_shape("NeuralLinear", "features", features, "B", self.dim)
        weights = self.mean if weights is None else weights
        if weights.dim() not in (2, 3) or weights.shape[-2:] != self.mean.shape:
            wanted = f"shape {tuple(self.mean.shape)}, or with draws in front"
            refuse("NeuralLinear", "weights", wanted, tuple(weights.shape))
        return features @ weights.to(features.dtype).mT

    @torch.no_grad()
    def sample(self, n: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw float64 weights from the posterior: (K, dim), or (n, K, dim) for n draws."""
        draws = 1 if n is None else n
        shape, device = (draws, *self.mean.shape), self.mean.device
        noise = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        # With L = C C^T, C^-T noise has covariance L^-1.
        upper = self.factor.mT.unsqueeze(0)
        if self.shared:
            noise = torch.linalg.solve_triangular(upper, noise.mT, upper=True).mT
        else:
            noise = torch.linalg.solve_triangular(upper, noise.unsqueeze(-1), upper=True)[..., 0]
        weights = self.mean + self.noise(draws, generator).sqrt().unsqueeze(-1) * noise
        return weights[0] if n is None else weights

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the noise variance, (n, K). They are constant if the variance is fixed."""
        if self.noise_variance is not None:
            return self.squares.new_full((n, self.num_outputs), self.noise_variance)
        shape = (self.shape + self.count / 2).expand(n, -1)
        # m^T L m = m^T f; rounding must not push the rate below its prior.
        fitted = (self.mean * self.moment).sum(1)
        rate = self.rate + (self.squares - fitted).clamp(min=0) / 2
        return rate / torch._standard_gamma(shape.contiguous(), generator=generator)

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor, outputs: Tensor | None = None) -> None:
        """Add rows to the posterior.

        Args:
            features: (n, dim).
            targets: (n, K), or (n,) together with ``outputs``.
            outputs: (n,) int64, the output that each row belongs to. This needs ``shared=False``.
        """
        owner, k = "NeuralLinear", self.num_outputs
        check_shape(owner, "features", features, "n", self.dim)
        check_shape(owner, "targets", targets, len(features), *((k,) if outputs is None else ()))
        check_finite(owner, "features", features)
        check_finite(owner, "targets", targets)
        if outputs is not None:
            check_shape(owner, "outputs", outputs, len(features))
            if self.shared:
                refuse(owner, "outputs", "None, as shared=True keeps one precision", "a tensor")
            if outputs.numel() and not 0 <= int(outputs.min()) <= int(outputs.max()) < k:
                bad = outputs[(outputs < 0) | (outputs >= k)][0].item()
                refuse(owner, "outputs", f"numbers from 0 to {k - 1}", bad)
        prior = self._prior(self.precision.device)
        precision = prior + self.forgetting * (self.precision - prior)
        sums = [self.forgetting * t for t in (self.moment, self.squares, self.count)]
        for at in range(0, len(features), CHUNK):
            rows = slice(at, at + CHUNK)
            z, y = features[rows].double(), targets[rows].double()
            self._add(z, y, None if outputs is None else outputs[rows], precision, *sums)
        # The decomposition is the last step that can fail, so nothing is stored before it is done.
        factor = torch.linalg.cholesky(precision)
        if self.shared:
            mean = torch.cholesky_solve(sums[0].T, factor).T
        else:
            mean = torch.cholesky_solve(sums[0].unsqueeze(-1), factor).squeeze(-1)
        for name, new in zip(STATE, (precision, *sums, mean, factor), strict=True):
            getattr(self, name).copy_(new)

    def _add(self, z, y, outputs, precision, moment, squares, count) -> None:
        """Add rows to the sums, in place."""
        if outputs is None:
            precision += z.T @ z
            moment += y.T @ z
            squares += y.square().sum(0)
            count += len(z)
            return
        for k in outputs.unique().tolist():
            mine, target = z[outputs == k], y[outputs == k]
            precision[k] += mine.T @ mine
            moment[k] += target @ mine
            squares[k] += target.square().sum()
            count[k] += len(mine)
