"""Interpolated attention (csrc/cross_chebyshev.h): the bound, its tables, and both sides of
every switch."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext import outer_attention
from lirank_ext.ops.cross import outer_attention_reference

LEVELS = range(1, 9)  # level l has 16 * l nodes
FORWARD_SHARE = BACKWARD_SHARE = 2.0**-25


def bound(nodes: int, spread: float, backward: bool) -> float:
    """Error by the theorem, relative to the range of v (forward) or the natural scale."""
    phi = np.linspace(0.3, np.pi / 2 - 1e-4, 4000)
    w = 2 * phi / spread
    rho = w + np.sqrt(1 + w * w)
    decay = rho ** (1.0 - nodes) / (rho - 1)
    if backward:
        return float((4 * (rho + 1 / rho) / 2 * decay / np.cos(phi) ** 2).min())
    return float((2 * decay / np.cos(phi)).min())


def largest_spread(nodes: int, backward: bool) -> float:
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        share = BACKWARD_SHARE if backward else FORWARD_SHARE
        if bound(nodes, middle, backward) <= share:
            low = middle
        else:
            high = middle
    return low


def table(name: str) -> list[float]:
    source = (REPOSITORY / "csrc" / "cross_chebyshev_table.cpp").read_text()
    numbers = re.search(name + r"\[kChebyshevLevels\] = \{(.*?)\}", source, re.S).group(1)
    return [float(x.strip().rstrip("f")) for x in numbers.split(",")]


@pytest.mark.parametrize("name", ["kForwardSpread", "kBackwardSpread"])
def test_the_tables_are_the_bound(name):
    backward = name == "kBackwardSpread"
    for level, written in zip(LEVELS, table(name), strict=True):
        derived = largest_spread(16 * level, backward)
        assert derived - 2e-4 < written <= derived


def keys_of(kind: str, r: int, generator: np.random.Generator) -> np.ndarray:
    """Keys in [0, 1], both ends taken."""
    keys = {
        "uniform": np.linspace(0, 1, r),
        "two clusters": np.repeat([0.0, 1.0], r // 2),
        "one apart": np.r_[np.zeros(r - 1), 1.0],
        "normal": generator.standard_normal(r),
    }[kind]
    return (keys - keys.min()) / (keys.max() - keys.min())


def exact(s, k, v):
    weights = np.exp(np.outer(s, k) - (np.outer(s, k)).max(1, keepdims=True))
    return weights @ v / weights.sum(1)


KINDS = ["uniform", "two clusters", "one apart", "normal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_interpolant_keeps_the_bound_in_float64(level, kind):
    generator = np.random.default_rng(level)
    nodes, spread = 16 * level, table("kForwardSpread")[level - 1]
    k = keys_of(kind, 256, generator) - 0.5
    v = {"normal": generator.standard_normal(256)}.get(kind, np.sign(k))
    x = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    for middle in (0.0, 3.0, -20.0):
        values = exact(middle + spread * x, k, v)
        modes = np.cos(np.pi * np.outer(np.arange(nodes), np.arange(nodes) + 0.5) / nodes)
        coefficients = 2 / nodes * modes @ values
        coefficients[0] /= 2
        at = np.linspace(-1, 1, 2001)
        got = np.polynomial.chebyshev.chebval(at, coefficients)
        error = np.abs(got - exact(middle + spread * at, k, v)).max()
        allowed = np.ptp(v) * (bound(nodes, spread, backward=False) + 1e-13)
        assert error <= allowed


def inputs_at(spread: float, kind: str, r: int, batch: int = 3):
    generator = np.random.default_rng(5)
    k = np.stack([keys_of(kind, r, generator) for _ in range(batch)]) * 2 - 1
    q = generator.uniform(-1, 1, (batch, r)) * spread
    q[:, 0], q[:, 1] = -spread / 2, spread / 2  # half-width S = spread / 2, range of k = 2
    q = np.clip(q, -spread / 2, spread / 2)
    q[1] += 4.0  # an interval that does not hold 0
    v = generator.standard_normal((batch, r))
    return [torch.from_numpy(t).float() for t in (q, k, v)]


def twice(q, k, v, g, function):
    """Result and gradients of q, k, v."""
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, g)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [0.998, 1.002])
@pytest.mark.parametrize("level", LEVELS)
def test_both_sides_of_every_switch_are_as_good_as_eager(level, side, kind):
    """Errors against float64; eager float32 on the same numbers sets the measure."""
    for name in ("kForwardSpread", "kBackwardSpread"):
        inputs = inputs_at(table(name)[level - 1] * side, kind, 32 * level)
        g = torch.randn_like(inputs[0])
        got = twice(*inputs, g, outer_attention)
        eager = twice(*inputs, g, outer_attention_reference)
        want = twice(*(t.double() for t in (*inputs, g)), outer_attention_reference)
        assert (got[0] - want[0]).abs().max() <= 16 * 2.0**-24 * inputs[2].abs().max()
        for a, b, c in zip(got[1:], eager[1:], want[1:], strict=True):
            error, allowed = (a - c).abs().max(), 4 * (b - c).abs().max()
            assert error <= allowed + 64 * 2.0**-23 * c.abs().max()  # as verify


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


@pytest.mark.parametrize("rank", [31, 32, 33, 63, 64, 65, 97, 256, 300])
def test_odd_ranks_around_the_smallest_level(rank):
    q, k, v = torch.randn(3, 5, rank) * 0.2
    want = outer_attention_reference(q.double(), k.double(), v.double())
    assert (outer_attention(q, k, v) - want).abs().max() <= 4e-7 * v.abs().max()


def test_equal_queries_and_equal_keys():
    q, k, v = torch.full((2, 64), 0.7), torch.randn(2, 64), torch.randn(2, 64)
    for a, b in ((q, k), (k, q)):
        want = outer_attention_reference(a.double(), b.double(), v.double())
        torch.testing.assert_close(outer_attention(a, b, v).double(), want, rtol=0, atol=1e-6)
