from __future__ import annotations

import pytest
import torch
from torch import nn

from lirank_ext import isotonic_calibration
from lirank_ext.nn import GatedMLP, IncrementalPenalty, LowRankCross, MMoE
from lirank_ext.nn.incremental_fisher import fisher_diagonal


class Ranker(nn.Module):
    """Ids and numbers through batch norm and dropout: all that per-sample gradients dislike."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 3)
        self.norm = nn.BatchNorm1d(5)
        self.mlp = GatedMLP([5, 4, 2], dropout=0.5)

    def forward(self, ids, x):
        return self.mlp(self.norm(torch.cat([self.table(ids), x], 1)))


def samples(n=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (n,), generator=generator)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return (ids, x), torch.randint(0, 2, (n, 2), generator=generator).double()


def fisher_by_hand(model, inputs, targets, names):
    """Sample by sample: log p of a Bernoulli under the model's probability, then backward."""
    model.eval()
    total = {name: 0.0 for name in names}
    for i in range(len(targets)):
        model.zero_grad()
        p = model(*(t[i : i + 1] for t in inputs)).sigmoid()[0]
        log_p = sum(torch.log(q if y else 1 - q) for q, y in zip(p, targets[i], strict=True))
        log_p.backward()
        for name, w in model.named_parameters():
            if name in names:
                total[name] = total[name] + w.grad**2 / len(targets)
    return total


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def shake(model, scale=0.3):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))


def recorded(cold_weight=0.3, forgetting=0.8, skip=("table",)):
    """A penalty with two different anchors, and the contents that it should have."""
    model = Ranker().double()
    names = [n for n, _ in model.named_parameters() if not n.startswith("table")]
    penalty = IncrementalPenalty(model, forgetting, cold_weight, skip)
    anchors = []
    for seed in (0, 1):
        inputs, targets = samples(seed=seed)
        anchors.append((copies(model), fisher_by_hand(model, inputs, targets, names)))
        model.train()
        # Two batches: the mean is over samples, not over batches.
        parts = [(tuple(t[r] for t in inputs), targets[r]) for r in (slice(0, 9), slice(9, 13))]
        assert penalty.record(model, parts, chunk_size=4) == 13
        assert all(m.training for m in model.modules())
        shake(model)
    return model, penalty, names, anchors


@pytest.mark.parametrize("cold_weight", [0.0, 0.3, 1.0])
def test_penalty_is_equation_three(cold_weight):
    model, penalty, names, ((w_0, h_0), (w_p, h_p)) = recorded(cold_weight)
    a, want = cold_weight, 0.0
    for name, w in copies(model).items():
        if name in names:
            cold = (h_0[name] * (w - w_0[name]) ** 2).sum()
            last = (h_p[name] * (w - w_p[name]) ** 2).sum()
            want = want + 0.8 / 2 * (a * cold + (1 - a) * last)
    got = penalty(model)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    model.zero_grad()
    got.backward()
    for name, p in model.named_parameters():
        if name in names:
            slope = a * h_0[name] * (p - w_0[name]) + (1 - a) * h_p[name] * (p - w_p[name])
            torch.testing.assert_close(p.grad, (0.8 * slope).detach(), rtol=1e-9, atol=1e-15)
        else:
            assert p.grad is None


def test_start_is_the_weighted_mean_of_the_anchors():
    model, penalty, names, ((w_0, _), (w_p, _)) = recorded(0.3)
    before = copies(model)
    penalty.start(model)
    for name, w in copies(model).items():
        want = 0.3 * w_0[name] + 0.7 * w_p[name] if name in names else before[name]
        torch.testing.assert_close(w, want, rtol=1e-12, atol=1e-14)


def test_a_new_cold_start_moves_both_anchors():
    model, penalty, _, _ = recorded(1.0)
    penalty.record(model, [samples()], cold=True)
    assert penalty(model) == 0
    assert torch.equal(penalty.cold_fisher, penalty.last_fisher)


@pytest.mark.parametrize("method", ["vmap", "loop", "batch"])
def test_fisher_methods(method):
    model = Ranker().double()
    inputs, targets = samples()
    names = dict(model.named_parameters())
    batches = [(inputs, targets)]
    if method == "batch":
        batches = [(tuple(t[i : i + 1] for t in inputs), targets[i : i + 1]) for i in range(13)]
    got, count = fisher_diagonal(model, names, batches, method=method)
    want = fisher_by_hand(model, inputs, targets, names)
    assert count == 13
    for name in names:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-15)


def test_batch_shortcut_squares_the_mean():
    model = Ranker().double().eval()
    inputs, targets = samples()
    names = dict(model.named_parameters())
    got, _ = fisher_diagonal(model, names, [(inputs, targets)], method="batch")
    loss = nn.functional.binary_cross_entropy_with_logits(model(*inputs), targets, reduction="none")
    gradients = torch.autograd.grad(loss.sum(1).mean(), list(names.values()))
    for name, g in zip(names, gradients, strict=True):
        torch.testing.assert_close(got[name], g**2, rtol=1e-9, atol=1e-15)


class OwnOps(nn.Module):
    def __init__(self):
        super().__init__()
        self.cross, self.head = LowRankCross(6, 2), MMoE(6, 1, 2, (16,), (8,))
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        logits = self.head(self.cross(x, x))[:, 0]
        return isotonic_calibration(logits, self.weight, self.bias, -4.0, 0.5)


def test_this_packages_ops_are_differentiated_per_sample():
    model = OwnOps()
    x, y = torch.randn(10, 6), torch.randint(0, 2, (10,)).float()
    names = dict(model.named_parameters())
    got, _ = fisher_diagonal(model, names, [(x, y)], chunk_size=4)
    want, _ = fisher_diagonal(model, names, [(x, y)], method="loop")
    for name in names:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-9)
    assert got["cross.u"].max() > 0 and got["weight"].max() > 0


class Looks(nn.Module):
    """Looks at its data, which torch.func does not allow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)[:, 0]


def test_a_model_that_torch_func_cannot_run():
    model, batch = Looks(), (torch.randn(5, 2), torch.ones(5))
    penalty = IncrementalPenalty(model)
    with pytest.raises(RuntimeError, match=r"torch\.func cannot run this model; method='loop' can"):
        penalty.record(model, [batch])
    assert model.training
    with pytest.raises(RuntimeError, match="nothing is recorded yet"):
        penalty(model)
    assert penalty.record(model, [batch], method="loop") == 5


def test_own_likelihood():
    model = nn.Linear(3, 1).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    got, _ = fisher_diagonal(
        model,
        dict(model.named_parameters()),
        [(x, y)],
        lambda out, y: (out - y).square().sum() / 2,
    )
    error = model(x) - y
    torch.testing.assert_close(got["weight"], (error * x).square().mean(0, keepdim=True))


def test_keeps_what_older_data_taught():
    """The new data's labels do not depend on column 0: unpenalized training forgets it."""
    loss = nn.functional.binary_cross_entropy_with_logits
    x, new = torch.randn(1000, 2), torch.randn(1000, 2)
    x[:, 1] = 0
    y = torch.bernoulli((2 * x[:, 0]).sigmoid())
    z = torch.bernoulli((2 * new[:, 1]).sigmoid())
    weights = {}
    for forgetting in (0.0, 10.0):
        model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
        penalty = IncrementalPenalty(model, forgetting)
        for round, data in enumerate(((x, y), (new, z))):
            optimizer = torch.optim.SGD(model.parameters(), 1.0)
            for _ in range(60):
                optimizer.zero_grad()
                extra = penalty(model) if round else 0.0
                (loss(model(data[0]), data[1]) + extra).backward()
                optimizer.step()
            penalty.record(model, [data], chunk_size=1000)
        weights[forgetting] = model[0].weight[0].tolist()
    assert abs(weights[0.0][0]) < 0.3 and weights[10.0][0] > 1.4  # column 0: true weight 2
    assert all(w[1] > 1.5 for w in weights.values())  # column 1 is learned either way


def test_state_dict():
    model, penalty, _, _ = recorded()
    other = IncrementalPenalty(model, 0.8, 0.3, ("table",))
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other(model), penalty(model))
    with pytest.raises(RuntimeError, match="the state dict is of a model with other names"):
        IncrementalPenalty(model).load_state_dict(penalty.state_dict())


def test_refusals():
    model = Ranker()
    with pytest.raises(ValueError, match=r"'skip': .*got 'tabel' \(did you mean 'table'\?\)"):
        IncrementalPenalty(model, skip=("tabel",))
    with pytest.raises(ValueError, match="'model': wanted a trainable parameter"):
        IncrementalPenalty(nn.ReLU())
    with pytest.raises(ValueError, match=r"'cold_weight': wanted a number in \[0, 1\], got 1.5"):
        IncrementalPenalty(model, cold_weight=1.5)
    with pytest.raises(ValueError, match="'forgetting': wanted 0 or more"):
        IncrementalPenalty(model, forgetting=-1)
    penalty = IncrementalPenalty(model)
    with pytest.raises(ValueError, match=r"'method': .*did you mean 'vmap'"):
        penalty.record(model, [], method="vmpa")
    with pytest.raises(ValueError, match="'batches': wanted at least one sample, got none"):
        penalty.record(model, [])
    with pytest.raises(RuntimeError, match="the model differs at parameter"):
        penalty.record(GatedMLP([2, 1]), [])
    with torch.no_grad():
        model.mlp.layers[0].weight[0, 0] = float("nan")
    inputs, targets = samples()
    with pytest.raises(ValueError, match=r"squared gradient of .*: wanted finite numbers"):
        penalty.record(model, [((inputs[0], inputs[1].float()), targets.float())])
