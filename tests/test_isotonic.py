from __future__ import annotations

import pytest
import torch

import lirank_ext
from lirank_ext import isotonic_calibration
from lirank_ext.nn import IsotonicCalibration
from lirank_ext.nn.reference_isotonic import ReferenceIsotonicCalibration


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


def pair(num_features=0):
    """The fast module and the eager one with the same random parameters."""
    fast = IsotonicCalibration(-6.0, 4.0, 0.5, num_features)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.normal_()
    slow = ReferenceIsotonicCalibration(-6.0, 4.0, 0.5, num_features)
    slow.load_state_dict(fast.state_dict())
    return fast, slow


@pytest.mark.parametrize("module", [IsotonicCalibration, ReferenceIsotonicCalibration])
@pytest.mark.parametrize("num_features", [0, 3])
def test_module_starts_as_the_identity(module, num_features):
    layer = module(lower=-17, upper=8, step=0.05, num_features=num_features)
    assert layer.weight.shape == (500,)
    x = torch.tensor([-20.0, -17, -3.21, 0, 7.99, 8, 30])
    features = (torch.randn(7, num_features),) if num_features else ()
    want = x.clamp(-17, 8)
    torch.testing.assert_close(layer(x, *features), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", ["nothing", "features", "embedding"])
def test_module_and_reference_module_agree(given):
    fast, slow = pair(3 if given == "features" else 0)
    x = (torch.rand(300) * 14 - 8).requires_grad_()
    extra = {
        "nothing": {},
        "features": {"features": torch.randn(300, 3)},
        "embedding": {"embedding": torch.randn(300, 20)},
    }[given]
    results = []
    for module in (fast, slow):
        y = module(x, **extra)
        leaves = [x, *module.parameters()]
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_swap_replaces_the_reference_module():
    _, slow = pair(2)
    model = torch.nn.ModuleDict({"calibration": slow})
    x, features = torch.randn(50), torch.randn(50, 2)
    want = slow(x, features)
    lirank_ext.swap(model)
    assert type(model["calibration"]) is IsotonicCalibration
    torch.testing.assert_close(model["calibration"](x, features), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"lower": 0, "upper": 1, "step": 0.3}, "step: wanted a divisor"),
        ({"lower": 0, "upper": 1, "step": 0}, "wanted step > 0"),
        ({"lower": 1, "upper": 1, "step": 0.5}, "upper > lower"),
        ({"lower": 0, "upper": 1, "step": 0.5, "num_features": -1}, "num_features"),
    ],
)
def test_module_refuses_what_makes_no_buckets(kwargs, text):
    with pytest.raises(ValueError, match=text):
        IsotonicCalibration(**kwargs)


def test_module_wants_features_exactly_where_it_has_them():
    without, having = IsotonicCalibration(-1, 1, 0.5), IsotonicCalibration(-1, 1, 0.5, 2)
    x, features = torch.zeros(3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="features: wanted None"):
        without(x, features)
    with pytest.raises(ValueError, match=r"features: wanted \(B, 2\), got None"):
        having(x)
    with pytest.raises(ValueError, match="embedding given"):
        having(x, features, torch.zeros(3, 4))
    assert having(x, embedding=torch.zeros(3, 4)).shape == (3,)
