from __future__ import annotations

import pytest
import torch

from lirank_ext.nn import NeuralLinear


def data(n=300, dim=6, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    w = torch.randn(outputs, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return z, z @ w.T + 0.5 * noise


def posterior(z, y, prior):
    """Sums row by row and the inverse, for one output."""
    precision = prior * torch.eye(z.shape[1], dtype=torch.float64)
    moment = torch.zeros(z.shape[1], dtype=torch.float64)
    for row, target in zip(z, y, strict=True):
        precision += torch.outer(row, row)
        moment += target * row
    return precision, precision.inverse() @ moment


def test_posterior_is_exact_and_incremental_equals_one_shot():
    z, y = data()
    one, many = NeuralLinear(6, 3, 0.7), NeuralLinear(6, 3, 0.7)
    one.update(z, y)
    for size, at in ((1, 0), (9, 1), (190, 10), (0, 200), (100, 200)):
        many.update(z[at : at + size], y[at : at + size])
    for k in range(3):
        precision, mean = posterior(z, y[:, k], 0.7)
        torch.testing.assert_close(one.mean[k], mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.precision, precision, rtol=1e-12, atol=1e-10)
    for name, t in one.named_buffers():
        torch.testing.assert_close(dict(many.named_buffers())[name], t, rtol=1e-10, atol=1e-10)
    assert one.count.tolist() == [300.0] * 3


def test_rows_of_single_outputs():
    z, y = data()
    arm = torch.arange(300) % 4  # output 3 never gets more than its own rows, as do the others
    y = y[:, 0]
    model = NeuralLinear(6, 5, shared=False)
    for part in torch.arange(300).split(70):
        model.update(z[part], y[part], outputs=arm[part])
    for k in range(4):
        precision, mean = posterior(z[arm == k], y[arm == k], 1.0)
        torch.testing.assert_close(model.mean[k], mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model.precision[k], precision, rtol=1e-12, atol=1e-10)
    assert (model.mean[4] == 0).all() and torch.equal(model.precision[4], torch.eye(6).double())
    assert model.count.tolist() == [75.0] * 4 + [0.0]
    both = NeuralLinear(6, 3, shared=False)
    both.update(*data())
    shared = NeuralLinear(6, 3)
    shared.update(*data())
    torch.testing.assert_close(both.mean, shared.mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_samples_have_the_posteriors_mean_and_covariance(shared):
    z, y = data(40)
    model = NeuralLinear(6, 3, 2.0, noise_variance=0.25, shared=shared)
    model.update(z, y)
    draws = model.sample(40_000, generator=torch.Generator().manual_seed(1))
    assert draws.shape == (40_000, 3, 6) and model.sample().shape == (3, 6)
    covariance = 0.25 * posterior(z, y[:, 0], 2.0)[0].inverse()
    scale = covariance.diagonal().sqrt()
    for k in range(3):
        # Standard errors: of a mean 1 / 200 of the deviation, of a covariance about the same.
        assert ((draws[:, k].mean(0) - model.mean[k]).abs() < 0.02 * scale).all()
        error = (draws[:, k].T.cov() - covariance) / torch.outer(scale, scale)
        assert error.abs().max() < 0.04
    between = torch.stack([draws[:, 0, 0], draws[:, 1, 0]]).corrcoef()[0, 1]
    assert between.abs() < 0.02  # outputs are independent


def test_noise_posterior_is_the_inverse_gamma():
    z, y = data(200)
    model = NeuralLinear(6, 3, 1.0, noise_variance=None, shape=3.0, rate=2.0)
    model.update(z[:120], y[:120])
    model.update(z[120:], y[120:])
    draws = model.noise(50_000, torch.Generator().manual_seed(1))
    for k in range(3):
        precision, mean = posterior(z, y[:, k], 1.0)
        a = 3.0 + 200 / 2
        b = 2.0 + (y[:, k] @ y[:, k] - mean @ precision @ mean) / 2
        assert draws[:, k].mean().item() == pytest.approx((b / (a - 1)).item(), rel=0.01)
        deviation = b / ((a - 1) * (a - 2) ** 0.5)
        assert draws[:, k].std().item() == pytest.approx(deviation.item(), rel=0.03)
        assert 0.15 < b / (a - 1) < 0.35  # 0.25 in the data, give or take four deviations
    assert (NeuralLinear(2, 1, noise_variance=0.3).noise(4) == 0.3).all()


def test_scores():
    z, y = data(20)
    model = NeuralLinear(6, 3)
    model.update(z, y)
    torch.testing.assert_close(model(z)[4, 1], z[4] @ model.mean[1], rtol=1e-12, atol=1e-12)
    draws = model.sample(5)
    scores = model(z, draws)
    assert scores.shape == (5, 20, 3)
    torch.testing.assert_close(scores[2, 4, 1], z[4] @ draws[2, 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(z, draws[2]), scores[2], rtol=1e-12, atol=1e-12)
    assert model(z.float()).dtype == torch.float32 and model(z[:0]).shape == (0, 3)
    z.requires_grad_()
    assert torch.autograd.gradcheck(model, (z,))


def test_thompson_sampling_finds_the_best_arm():
    generator = torch.Generator().manual_seed(0)
    best, one = torch.tensor([0.2, 0.5, 0.3]), torch.ones(1, 1)
    model, chosen = NeuralLinear(1, 3, shared=False, noise_variance=0.25), []
    for _ in range(300):
        arm = model(one, model.sample(generator=generator)).argmax(1)
        reward = torch.bernoulli(best[arm], generator=generator)
        model.update(one, reward, outputs=arm)
        chosen.append(arm.item())
    assert chosen[-100:].count(1) > 75 and len(set(chosen[:50])) == 3


def test_saved_state_gives_the_same_bits():
    z, y = data(50)
    model, other = (NeuralLinear(6, 3, noise_variance=None) for _ in range(2))
    model.update(z, y)
    other.load_state_dict(model.state_dict())
    for m in (model, other):
        m.update(z[:7], y[:7])
    draws = [m.sample(3, torch.Generator().manual_seed(5)) for m in (model, other)]
    assert torch.equal(*draws)


def test_casting_does_not_round_the_sums():
    model = NeuralLinear(6, 3)
    model.update(*data())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.half().float().to(torch.bfloat16)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model(torch.ones(1, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_forgetting():
    z, y = data(30)
    model = NeuralLinear(6, 3, 2.0, forgetting=0.5)
    model.update(z[:20], y[:20])
    model.update(z[20:], y[20:])
    prior = 2 * torch.eye(6, dtype=torch.float64)
    precision = prior + 0.5 * z[:20].T @ z[:20] + z[20:].T @ z[20:]
    moment = 0.5 * z[:20].T @ y[:20] + z[20:].T @ y[20:]
    torch.testing.assert_close(model.mean, (precision.inverse() @ moment).T)
    assert model.count.tolist() == [20.0] * 3


def test_bad_rows_change_nothing():
    z, y = data(10)
    model = NeuralLinear(6, 3, shared=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    z[4, 2] = float("nan")
    with pytest.raises(ValueError, match=r"'features': wanted finite numbers, got nan at \(4, 2\)"):
        model.update(z, y)
    z[4, 2] = 0.0
    with pytest.raises(ValueError, match=r"'outputs': wanted numbers from 0 to 2, got 3"):
        model.update(z, y[:, 0], outputs=torch.arange(10) % 4)
    with pytest.raises(ValueError, match=r"'targets': wanted shape \(10, 3\), got \(10, 2\)"):
        model.update(z, y[:, :2])
    with pytest.raises(ValueError, match=r"'features': wanted shape \(n, 6\), got \(10, 5\)"):
        model.update(z[:, :5], y)
    with pytest.raises(ValueError, match="'outputs': wanted None, as shared=True"):
        NeuralLinear(6, 3).update(z, y[:, 0], outputs=torch.zeros(10).long())
    with pytest.raises(torch.linalg.LinAlgError):
        model.update(z * 1e200, y)  # squares overflow: the decomposition fails
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals():
    for name, bad in (("prior_precision", 0.0), ("noise_variance", -1.0), ("forgetting", 0.0)):
        with pytest.raises(ValueError, match=f"NeuralLinear: argument '{name}'"):
            NeuralLinear(3, 2, **{name: bad})
    with pytest.raises(ValueError, match="NeuralLinear: argument 'num_outputs'"):
        NeuralLinear(3, 0)
    with pytest.raises(ValueError, match=r"'weights': wanted shape \(2, 3\), or with draws"):
        NeuralLinear(3, 2)(torch.ones(1, 3), torch.ones(3, 2))
