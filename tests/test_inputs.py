from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lirank_ext.nn import NumericBatchNorm


def by_hand(values, weight, bias, eps=1e-5):
    """Mean and biased variance of the values of one column. None means missing."""
    there = [v for v in values if v is not None]
    mean = sum(there) / len(there)
    var = sum((v - mean) ** 2 for v in there) / len(there)
    scaled = [0.0 if v is None else (v - mean) / math.sqrt(var + eps) for v in values]
    return [s * weight + bias for s in scaled], mean, var * len(there) / (len(there) - 1)


def test_nothing_missing_is_batch_norm():
    # momentum=None averages over all batches, as ours does over the first 1 / momentum.
    ours, theirs = NumericBatchNorm(5), nn.BatchNorm1d(5, momentum=None)
    for step in range(4):
        x = torch.randn(40, 5) * (step + 1) + 2
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var"):
        ours_then, theirs_then = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(ours_then, theirs_then, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_momentum_takes_over():
    model, mean = NumericBatchNorm(1, momentum=0.25), 0.0
    for step in range(1, 12):
        x = torch.randn(30, 1) + step
        model(x)
        mean += (x.mean().item() - mean) * max(0.25, 1 / step)
        assert model.running_mean.item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(("offset", "scale"), [(1.7e9, 1e7), (1e6, 10.0), (-3e4, 1.0), (0, 1e12)])
def test_statistics_are_right_after_the_first_batch(offset, scale):
    model = NumericBatchNorm(1)
    x = torch.randn(500, 1) * scale + offset
    model(x)
    got = model.eval()(x)
    assert abs(got.mean()) < 0.02
    assert abs(got.std() - 1) < 0.02


def test_a_column_that_was_missing_starts_with_its_own_first_batch():
    model = NumericBatchNorm(2)
    x = torch.randn(64, 2) + 1000
    late = x.clone()
    late[:, 1] = float("nan")
    for batch in (late, late, x):
        model(batch)
    assert model.running_mean[1].item() == pytest.approx(x[:, 1].mean().item(), rel=1e-6)


def test_missing_values_take_no_part_and_become_the_mean():
    model = NumericBatchNorm(3).double()
    nn.init.normal_(model.weight)
    nn.init.normal_(model.bias)
    x = torch.randn(8, 3, dtype=torch.float64) * 4 + 1
    holes = torch.rand(8, 3) < 0.3
    odd = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
    x[holes] = odd.repeat(8)[: holes.sum()]
    got = model(x)
    assert holes.any(0).all()
    for c in range(3):
        column = [None if h else v for v, h in zip(x[:, c].tolist(), holes[:, c], strict=True)]
        want, mean, var = by_hand(column, model.weight[c].item(), model.bias[c].item())
        assert got[:, c].tolist() == pytest.approx(want, abs=1e-12)
        assert model.running_mean[c].item() == pytest.approx(mean, abs=1e-12)
        assert model.running_var[c].item() == pytest.approx(var, abs=1e-12)
    model.eval()
    assert torch.equal(model(x)[holes], model.bias.expand(8, 3)[holes])


def test_columns_with_fewer_than_two_values_leave_the_statistics():
    model = NumericBatchNorm(3)
    for _ in range(3):
        model(torch.randn(50, 3) * 3 + 5)
    mean, var = model.running_mean.clone(), model.running_var.clone()
    x = torch.randn(4, 3)
    x[:, 0], x[1:, 1] = float("nan"), float("nan")
    got = model(x)
    assert torch.equal(model.running_mean[:2], mean[:2])
    assert torch.equal(model.running_var[:2], var[:2])
    assert not torch.equal(model.running_mean[2], mean[2])
    assert (got[:, 0] == 0).all()
    want = (x[0, 1] - mean[1]) / (var[1] + 1e-5).sqrt()
    torch.testing.assert_close(got[0, 1], want)
    one = model(x[:1])
    assert one.isfinite().all() and model(x[:0]).shape == (0, 3)


def test_log_columns():
    x = torch.tensor([[0.0, -3.0], [1e6, 5.0], [math.e - 1, 2.0]]).double()
    both = NumericBatchNorm(2, log=True, affine=False).double()
    one = NumericBatchNorm(2, log=[0], affine=False).double()
    logs = [[math.copysign(math.log1p(abs(v)), v) for v in row] for row in x.tolist()]
    logs = torch.tensor(logs, dtype=torch.float64)
    for c in range(2):
        want, _, _ = by_hand(logs[:, c].tolist(), 1.0, 0.0)
        assert both(x)[:, c].tolist() == pytest.approx(want, abs=1e-12)
    want, _, _ = by_hand(x[:, 1].tolist(), 1.0, 0.0)
    assert one(x)[:, 1].tolist() == pytest.approx(want, abs=1e-12)
    assert torch.equal(one(x)[:, 0], both(x)[:, 0])
    assert list(one.state_dict()) == ["running_mean", "running_var", "num_values"]


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training):
    model = NumericBatchNorm(3, log=[1]).double().train(training)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))
    holed = x.detach().clone()
    holed[2, 1], holed[:, 2] = float("nan"), float("inf")
    holed.requires_grad_()
    model(holed).square().sum().backward()
    assert holed.grad.isfinite().all()
    assert holed.grad[2, 1] == 0 and (holed.grad[:, 2] == 0).all()
    assert model.weight.grad.isfinite().all() and model.bias.grad.isfinite().all()


def test_numeric_batch_norm_compiles():
    model = NumericBatchNorm(4, log=True)
    twin = NumericBatchNorm(4, log=True)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 4)
    x[3, 2] = float("nan")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(twin.running_var, model.running_var)


def test_numeric_batch_norm_refusals():
    with pytest.raises(ValueError, match="NumericBatchNorm: argument 'num_features'"):
        NumericBatchNorm(0)
    with pytest.raises(ValueError, match="'log': wanted columns from 0 to 2, got"):
        NumericBatchNorm(3, log=[1, 3])
    with pytest.raises(ValueError, match="'momentum': wanted a number"):
        NumericBatchNorm(3, momentum=0)
    with pytest.raises(ValueError, match=r"'x': wanted shape \(B, 3\), got \(2, 4\)"):
        NumericBatchNorm(3)(torch.ones(2, 4))
