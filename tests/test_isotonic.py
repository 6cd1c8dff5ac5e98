from __future__ import annotations

import pytest
import torch

import lirank_ext
from lirank_ext import isotonic_calibration


def by_hand(x, weight, bias, lower, step):
    """Equation 1 of the paper, one sample at a time."""
    z = min(max(x - lower, 0.0), len(weight) * step)
    total, i = 0.0, 0
    while z > 0 and i < len(weight):
        total += max(weight[i], 0.0) * min(z, step)
        z, i = z - step, i + 1
    return total + lower + bias


def test_follows_equation_one():
    weight = torch.randn(13)
    x = torch.rand(200) * 12 - 8
    got = isotonic_calibration(x, weight, torch.tensor([0.3]), -6.0, 0.5)
    want = [by_hand(v, weight.tolist(), 0.3, -6.0, 0.5) for v in x.tolist()]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_unit_weights_are_the_identity():
    x = torch.linspace(-17, 8, 5001)
    y = isotonic_calibration(x, torch.ones(500), torch.zeros(()), -17.0, 0.05)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("features", [False, True])
def test_never_decreases(features):
    x = torch.linspace(-9, 9, 4001)
    embedding = torch.randn(20).expand(4001, 20) if features else None
    y = isotonic_calibration(x, torch.randn(20), torch.zeros(()), -5.0, 0.5, embedding)
    assert (y.diff() >= -1e-5).all()


def test_gradcheck():
    generator = torch.Generator().manual_seed(3)
    x = (torch.arange(12, dtype=torch.float64) * 0.5 - 3.7).requires_grad_()
    weight = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(12, 8, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *a: isotonic_calibration(*a[:3], -2.0, 0.5), (x, weight, bias)
    )
    assert torch.autograd.gradcheck(
        lambda x, w, b, e: isotonic_calibration(x, w, b, -2.0, 0.5, e),
        (x, weight, bias, embedding),
    )


def test_bit_equal_for_any_number_of_threads(threads):
    x = torch.randn(100_000, requires_grad=True)
    weight = torch.rand(100, requires_grad=True)
    results = []
    for count in (1, 2, 3):
        threads(count)
        y = isotonic_calibration(x, weight, torch.zeros(()), -4.0, 0.1)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, weight))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inductor_forward_and_backward():
    x, weight, bias = torch.randn(64), torch.rand(10), torch.zeros(())

    def step(x, weight, bias):
        return (isotonic_calibration(x * 2, weight, bias, -3.0, 0.6) ** 2).sum()

    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    twins = [t.clone().requires_grad_() for t in (x, weight, bias)]
    step(*leaves).backward()
    torch.compile(step, fullgraph=True)(*twins).backward()
    for a, b in zip(leaves, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_inference_mode():
    with torch.inference_mode():
        x = torch.randn(5)
        assert lirank_ext.isotonic_calibration(
            x, torch.ones(40), torch.zeros(()), -10.0, 0.5
        ).allclose(x, atol=1e-5)
