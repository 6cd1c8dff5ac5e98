"""Interpolated attention (csrc/simd/cross_chebyshev.h): the bound, where it is taken, and how good
the results are on both sides of every switch."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext import outer_attention
from lirank_ext.library.op import OPS

outer_attention_reference = OPS["outer_attention"].reference
KINDS = {
    "uniform": lambda r, g: np.linspace(-2, 2, r),
    "two clusters": lambda r, g: np.repeat([-1.5, 1.5], (r + 1) // 2)[:r],
    "one apart": lambda r, g: np.r_[np.zeros(r - 1), 3.0],
    "normal": lambda r, g: g.standard_normal(r),
    "exponential": lambda r, g: g.exponential(size=r),
}
SOURCE = (REPOSITORY / "csrc" / "cross_chebyshev_table.cpp").read_text()
FIRST, STEP = re.search(r"exp2\((\S+) \+ (\S+) \* \(i % kEllipses\)\)", SOURCE).groups()
RHO = 2 ** (float(FIRST) + float(STEP) * np.arange(8))  # of the ellipses that the kernel tries


class Sample:
    """The quantities of one sample that the bound uses, in float64, with natural exponents."""

    def __init__(self, q: np.ndarray, k: np.ndarray):
        self.half, self.middle = np.ptp(q) / 2, (q.max() + q.min()) / 2
        weights = np.exp(self.middle * (k - (k.max() if self.middle > 0 else k.min())))
        self.weights = weights / weights.sum()
        self.k = (k - self.weights @ k) * self.half
        self.up, self.down = self.log_D(np.array([1.0, -1.0]))
        self.A, self.b = (self.up + self.down) / 2, (self.up - self.down) / 2
        self.low, self.high = -self.k.min(), self.k.max()

    def log_D(self, x: np.ndarray) -> np.ndarray:
        return np.log(np.exp(np.outer(x, self.k)) @ self.weights)

    def level(self, x: np.ndarray) -> np.ndarray:
        return self.log_D(x) - self.b * x - self.A * x * x

    def least(self) -> float:
        right = 1 - self.up / self.high if self.high > 0 else 0
        left = 1 - self.down / self.low if self.low > 0 else 0
        return min(0, -right * (self.b + self.A * right), left * (self.b - self.A * left))

    def highest(self, rho: float) -> float:
        """Of the real part of the exponent on the ellipse."""
        a, h = (rho + 1 / rho) / 2, (rho - 1 / rho) / 2
        curve = self.A * (1 + (h / a) ** 2)
        found = [self.A / 4 / (1 + (h / a) ** 2)]
        for end, slope, b in ((self.up, self.high, self.b), (self.down, self.low, -self.b)):
            x = np.clip((slope - b) / (2 * curve + 1e-20), 1, a)
            found.append(end + (x - 1) * slope - b * x - curve * x * x)
        return max(found) + self.A * h * h

    def error(self, nodes: int, rho: float) -> float:
        """E of the header."""
        return 4 * rho ** (1.0 - nodes) / (rho - 1) * np.exp(self.highest(rho) - self.least())

    def nodes(self) -> int:
        for nodes in range(8, 512, 2):
            if min(self.error(nodes, rho) for rho in RHO) <= 2.0**-26:
                return nodes
        return 512


def draw(kind: str, r: int, width: float, middle: float, seed: int = 0):
    generator = np.random.default_rng(seed)
    k = KINDS[kind](r, generator)
    return width * generator.standard_normal(r) + middle, k, generator.standard_normal(r)


def exact(s, k, v):
    scores = np.outer(s, k)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights @ v / weights.sum(1)


@pytest.mark.parametrize("middle", [0.0, 1.0, -4.0])
@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_in_float64(kind, width, middle):
    q, k, v = draw(kind, 128, width, middle)
    sample = Sample(q, k)
    x = np.linspace(-1, 1, 2001)
    level = sample.level(x)
    assert level.min() >= sample.least() - 1e-9
    assert level.max() <= sample.A / 4 + 1e-9
    for rho in RHO:  # the height of the function on the whole ellipse
        z = rho * np.exp(1j * np.linspace(0, 2 * np.pi, 721)) / 2
        z = z + 1 / (4 * z)
        D = (
            np.exp(np.outer(z, sample.k))
            @ sample.weights
            * np.exp(-sample.b * z - sample.A * z * z)
        )
        assert np.log(np.abs(D).max()) <= sample.highest(rho) + 1e-9
    nodes = sample.nodes()
    at = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    factor = np.exp(-sample.b * at - sample.A * at * at)
    e = np.exp(np.outer(at, sample.k)) * sample.weights * factor[:, None]
    modes = np.cos(np.pi * np.outer(np.arange(nodes), np.arange(nodes) + 0.5) / nodes) * 2 / nodes
    modes[0] /= 2
    centred = v - sample.weights @ v
    D, N = (np.polynomial.chebyshev.chebval(x, modes @ e @ w) for w in (np.ones_like(v), centred))
    got = N / D + sample.weights @ v
    error = np.abs(got - exact(sample.middle + sample.half * x, k, v)).max()
    assert error <= np.ptp(v) * (2.0**-25 + 1e-12)


def tensors(*arrays):
    return [torch.from_numpy(np.stack(a)).float() for a in arrays]


def twice(q, k, v, g, function):
    """Result and gradients of q, k, v."""
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, g)]


def as_good_as_eager(q, k, v, g) -> torch.Tensor:
    """For each sample, whether the errors of result and gradients against float64 are small enough.

    A gradient that nearly cancels only has to keep the bound, 2^-25 of the largest possible terms.
    """
    got = twice(q, k, v, g, outer_attention)
    eager = twice(q, k, v, g, outer_attention_reference)
    want = twice(*(t.double() for t in (q, k, v, g)), outer_attention_reference)
    most = g.double().abs().amax(1) * (v.amax(1) - v.amin(1))
    scales = (v.abs().amax(1), most * k.abs().amax(1), most * q.abs().amax(1), most)
    good = torch.ones(len(q), dtype=torch.bool)
    for a, b, c, scale in zip(got, eager, want, scales, strict=True):
        error, allowed, size = ((x).abs().amax(1) for x in (a - c, b - c, c))
        good &= error <= 4 * allowed + 64 * 2.0**-23 * size + 2.0**-25 * scale  # 64: as verify
    error, allowed = ((x[0] - want[0]).abs().amax(1) for x in (got, eager))
    return good & (error <= torch.maximum(4 * allowed, 2.0**-20 * v.abs().amax(1)))


# Without the library the op's own reference would be asked to round as luckily as eager's.
@needs_library
@pytest.mark.parametrize("middle", [0.0, 1.5, -3.0])
@pytest.mark.parametrize("rank", [40, 64, 129, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_as_good_as_eager_from_narrow_to_wide(kind, rank, middle):
    """Widths that go through every number of nodes and into the exact sum."""
    rows = [draw(kind, rank, w, middle, seed) for seed, w in enumerate(np.geomspace(0.02, 6, 24))]
    q, k, v = tensors(*zip(*rows, strict=True))
    g = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    assert as_good_as_eager(q, k, v, g).all()


@needs_library
@pytest.mark.parametrize(
    ("rank", "width", "by_nodes"),
    [(64, 0.3, True), (64, 1.0, True), (256, 1.0, True), (256, 12.0, False), (32, 1.5, False)],
)
def test_which_samples_are_interpolated(rank, width, by_nodes):
    """The exact sum of one query does not depend on the others. The nodes depend on all queries."""
    q, k, v = tensors(*([row] for row in draw("normal", rank, width, 0.0)))
    before = outer_attention(q, k, v)
    q[0, q.argmax()] += 0.1 * width
    after = outer_attention(q, k, v)
    others = q[0] < q.max()
    assert (before[0, others] != after[0, others]).any() == by_nodes
    nodes = Sample(q[0].double().numpy(), k[0].double().numpy()).nodes()
    assert (nodes <= rank // 2) == by_nodes


@needs_library
def test_values_that_are_not_finite_take_the_exact_sum():
    q, k, v = torch.randn(3, 4, 64) * 0.1
    v[1, 5] = torch.inf
    v[2, 7] = torch.nan
    got = outer_attention(q, k, v)
    assert got[1].isposinf().all() and got[2].isnan().all()
    assert got[0].isfinite().all() and got[3].isfinite().all()
    q[3, 2] = torch.nan
    got = outer_attention(q, k, v)
    assert got[3].isnan().sum() == 1 and got[3, 2].isnan()
    k[0, 3] = torch.nan
    assert outer_attention(q, k, v)[0].isnan().all()


@pytest.mark.parametrize("rank", [31, 32, 33, 63, 64, 65, 97, 256, 300])
def test_odd_ranks(rank):
    q, k, v = torch.randn(3, 5, rank) * 0.2
    want = outer_attention_reference(q.double(), k.double(), v.double())
    assert (outer_attention(q, k, v) - want).abs().max() <= 4e-7 * v.abs().max()


@pytest.mark.parametrize(
    ("scale", "q_at", "k_at"),
    [(1e-30, 0, 0), (1e-3, 0, 1e3), (1, 500, 0), (1, 0, 500), (30, 0, 0), (1e15, 0, 0)],
)
def test_magnitudes(scale, q_at, k_at):
    """Narrow and wide scores, and queries or keys far from 0."""
    generator = torch.Generator().manual_seed(3)
    q, k, v, g = torch.randn(4, 3, 128, generator=generator)
    q, k = q * scale + q_at, k + k_at
    assert as_good_as_eager(q, k, v, g).all()


def test_equal_queries_and_equal_keys():
    q, k, v = torch.full((2, 64), 0.7), torch.randn(2, 64), torch.randn(2, 64)
    for a, b in ((q, k), (k, q)):
        want = outer_attention_reference(a.double(), b.double(), v.double())
        torch.testing.assert_close(outer_attention(a, b, v).double(), want, rtol=0, atol=1e-6)
