from __future__ import annotations

import math

import pytest
import torch

from lirank_ext.nn import RandomEffect


def rows(n=400, ids=12, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logit = torch.randn(n, generator=generator, dtype=torch.float64)
    known = torch.randperm(1000, generator=generator)[:ids] - 500
    which = torch.randint(0, ids, (n,), generator=generator)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    effect = torch.randn(ids, generator=generator, dtype=torch.float64)
    truth = logit + effect[which] + (x.sum(1) if features else 0)
    y = torch.bernoulli(truth.sigmoid(), generator=generator)
    return logit, known[which], y, x if features else None


def slope(logit, y, x, theta, l2, weights):
    """Gradient of one id's penalized loss, sample by sample."""
    total = [l2 * t for t in theta]
    for offset, target, row, weight in zip(logit, y, x, weights, strict=True):
        p = 1 / (1 + math.exp(-(offset + sum(t * v for t, v in zip(theta, row, strict=True)))))
        total = [s + weight * (p - target) * v for s, v in zip(total, row, strict=True)]
    return total


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_id_is_at_its_own_minimum(features, weighted):
    logit, ids, y, x = rows(features=features)
    weights = torch.rand(400, dtype=torch.float64) * 3 if weighted else None
    model = RandomEffect(features, l2=0.6).double()
    model.fit(logit, ids, y, x, weights)
    assert model.ids.tolist() == sorted(set(ids.tolist()))
    for k, theta in zip(model.ids.tolist(), model.coefficients.tolist(), strict=True):
        mine = (ids == k).nonzero()[:, 0].tolist()
        design = [[1.0, *(x[i].tolist() if features else [])] for i in mine]
        each = [1.0 if weights is None else weights[i].item() for i in mine]
        gradient = slope(logit[mine].tolist(), y[mine].tolist(), design, theta, 0.6, each)
        # The loss is convex: a gradient of 0 is the minimum.
        assert max(map(abs, gradient)) < 1e-9


def test_forward_adds_to_the_logit():
    logit, ids, y, x = rows()
    model = RandomEffect(2).double()
    model.fit(logit, ids, y, x)
    asked = torch.tensor([int(model.ids[3]), 77_777, int(model.ids[-1]), -(2**62)])
    got = model(logit[:4], asked, x[:4])
    for i, row in enumerate([3, None, 11, None]):
        theta = [0.0] * 3 if row is None else model.coefficients[row].tolist()
        extra = theta[0] + theta[1] * x[i, 0].item() + theta[2] * x[i, 1].item()
        assert got[i].item() == pytest.approx(logit[i].item() + extra, abs=1e-12)
    assert torch.equal(got[1], logit[1])
    leaves = [t[:4].clone().requires_grad_() for t in (logit, x)]
    assert torch.autograd.gradcheck(lambda a, b: model(a, asked, b), leaves)


def test_lowers_the_loss_on_later_rows():
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    logit, ids, y, _ = rows(4000, 40, 0)
    model = RandomEffect().double()
    model.fit(logit[:2000], ids[:2000], y[:2000])
    after = loss(model(logit[2000:], ids[2000:]), y[2000:])
    assert after < loss(logit[2000:], y[2000:]) - 0.03


def test_a_refit_forgets_and_an_empty_fit_clears():
    logit, ids, y, _ = rows(features=0)
    model, fresh = RandomEffect(), RandomEffect()
    assert torch.equal(model(logit, ids), logit) and len(model) == 0
    model.fit(logit[:300], ids[:300], y[:300])
    for m in (model, fresh):
        m.fit(logit[300:], ids[300:], y[300:])
    assert torch.equal(model.coefficients, fresh.coefficients)
    model.fit(logit[:0], ids[:0], y[:0])
    assert len(model) == 0 and torch.equal(model(logit, ids), logit)
    assert model(logit[:0], ids[:0]).shape == (0,)


def test_extreme_logits_and_separable_rows_converge():
    n = 40
    logit = torch.tensor([30.0, -30.0]).repeat(n // 2)
    for y in (torch.zeros(n), torch.ones(n), (logit < 0).float()):
        model = RandomEffect(l2=1e-6).double()
        steps = model.fit(logit, torch.zeros(n, dtype=torch.int64), y)
        theta = model.coefficients[0].tolist()
        gradient = slope(logit.tolist(), y.tolist(), [[1.0]] * n, theta, 1e-6, [1.0] * n)
        assert abs(gradient[0]) < 1e-6 and steps < 50


def test_state_dict_restores_another_size():
    logit, ids, y, x = rows()
    model, other = RandomEffect(2), RandomEffect(2)
    model.fit(logit, ids, y, x)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(logit, ids, x), model(logit, ids, x))


def test_order_of_rows_and_int32_ids_change_nothing():
    logit, ids, y, x = rows()
    model, other = RandomEffect(2), RandomEffect(2)
    order = torch.randperm(400)
    model.fit(logit, ids, y, x)
    other.fit(logit[order], ids[order].int(), y[order], x[order])
    torch.testing.assert_close(other.coefficients, model.coefficients)
    assert torch.equal(other(logit, ids.int(), x), other(logit, ids, x))


def test_compiles():
    logit, ids, y, x = rows()
    model = RandomEffect(2)
    model.fit(logit, ids, y, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logit, ids, x), model(logit, ids, x))


def test_refusals():
    logit, ids, y, x = rows()
    model = RandomEffect(2)
    model.fit(logit, ids, y, x)
    before = model.coefficients.clone()
    wrong = y.clone()
    wrong[5] = 1.5
    with pytest.raises(ValueError, match=r"'targets': wanted numbers in \[0, 1\], got 1.5"):
        model.fit(logit, ids, wrong, x)
    holed = x.clone()
    holed[3, 1] = float("inf")
    with pytest.raises(ValueError, match="'features': wanted finite numbers, got inf"):
        model.fit(logit, ids, y, holed)
    with pytest.raises(ValueError, match=r"'weights': wanted 0 or more, got -1.0"):
        model.fit(logit, ids, y, x, -torch.ones(400))
    with pytest.raises(RuntimeError, match="no convergence in 1 Newton steps"):
        short = RandomEffect(2, max_iterations=1)
        short.fit(logit, ids, y, x)
    assert torch.equal(model.coefficients, before) and len(short) == 0
    with pytest.raises(ValueError, match=r"'features': wanted shape \(B, 2\), got None"):
        model(logit, ids)
    with pytest.raises(ValueError, match=r"'features': wanted None, got \(400, 2\)"):
        RandomEffect()(logit, ids, x)
    with pytest.raises(ValueError, match=r"'ids': wanted shape \(400,\), got \(399,\)"):
        model(logit, ids[1:], x)
    with pytest.raises(TypeError, match=r"'ids': wanted whole numbers, got torch\.float32"):
        model(logit, ids.float(), x)
    with pytest.raises(ValueError, match="RandomEffect: argument 'l2': wanted a positive number"):
        RandomEffect(l2=0)
