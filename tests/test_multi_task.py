from __future__ import annotations

import pytest
import torch
from torch import nn

from lirank_ext.nn import PLE, GroupedTowers, HardShared, MMoE


def heads(**options):
    """One of each, for 3 tasks on 6 features."""
    return {
        "grouped": GroupedTowers(6, [[2, 0], [1]], (5,), (4,), **options),
        "hard": HardShared(6, 3, (5,), (4,), **options),
        "mmoe": MMoE(6, 3, 2, (5,), (4,), **options),
        "ple": PLE(6, 3, 2, 1, 2, (5,), (4,), **options),
    }


def mlp(module, x, hidden_output):
    """Linear and ReLU by turns, one sample as a vector."""
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for i, linear in enumerate(linears):
        x = linear.weight @ x + linear.bias
        if hidden_output or i < len(linears) - 1:
            x = x.clamp(min=0)
    return x


def mixture(gate, x, parts):
    scores = (gate.weight @ x).exp()
    return sum(s / scores.sum() * part for s, part in zip(scores, parts, strict=True))


def grouped_by_hand(model, x, groups):
    shared = mlp(model.shared, x, True)
    out = torch.zeros(model.num_tasks, dtype=x.dtype)
    for tower, group in zip(model.towers, groups, strict=True):
        for task, logit in zip(group, mlp(tower, shared, False), strict=True):
            out[task] = logit
    return out


def mmoe_by_hand(model, x):
    parts = [mlp(expert, x, True) for expert in model.experts]
    states = [mixture(gate, x, parts) for gate in model.gates]
    return torch.cat([mlp(t, s, False) for t, s in zip(model.towers, states, strict=True)])


def ple_by_hand(model, x):
    tasks, states, shared = model.num_tasks, [x] * model.num_tasks, x
    for number, layer in enumerate(model.layers):
        own = [[mlp(e, states[k], True) for e in layer.experts[k]] for k in range(tasks)]
        common = [mlp(e, shared, True) for e in layer.experts[tasks]]
        new = [mixture(layer.gates[k], states[k], own[k] + common) for k in range(tasks)]
        if number < len(model.layers) - 1:
            everything = [part for group in own for part in group] + common
            shared = mixture(layer.gates[tasks], shared, everything)
        states = new
    return torch.cat([mlp(t, s, False) for t, s in zip(model.towers, states, strict=True)])


BY_HAND = {
    "grouped": lambda m, x: grouped_by_hand(m, x, [[2, 0], [1]]),
    "hard": lambda m, x: grouped_by_hand(m, x, [[0], [1], [2]]),
    "mmoe": mmoe_by_hand,
    "ple": ple_by_hand,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_formula(kind):
    model = heads()[kind].double()
    x = torch.randn(7, 6, dtype=torch.float64)
    want = torch.stack([BY_HAND[kind](model, row) for row in x])
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


def test_ple_of_three_layers_and_one():
    for layers in (1, 3):
        model = PLE(6, 2, layers, 2, 1, (5, 4), ()).double()
        x = torch.randn(3, 6, dtype=torch.float64)
        want = torch.stack([ple_by_hand(model, row) for row in x])
        torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


def test_groups_share_a_tower_and_others_do_not():
    model = heads()["grouped"]
    x = torch.randn(7, 6)
    for task, touched in ((0, [True, False]), (2, [True, False]), (1, [False, True])):
        model.zero_grad()
        model(x)[:, task].sum().backward()
        assert [t.layers[0].weight.grad.abs().sum().item() > 0 for t in model.towers] == touched
        assert model.shared.layers[0].weight.grad.abs().sum() > 0


def test_plain_towers_on_the_features():
    model = GroupedTowers(6, [[0], [1]], tower_dims=())
    x = torch.randn(4, 6)
    want = torch.cat([t.layers[0](x) for t in model.towers], 1)
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize("kind", BY_HAND)
def test_every_parameter_learns(kind):
    torch.manual_seed(2)
    model = heads()[kind]
    model(torch.randn(64, 6)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", BY_HAND)
def test_gradcheck(kind):
    model = heads(gate="tanh")[kind].double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


@pytest.mark.parametrize("kind", BY_HAND)
def test_options_reach_every_hidden_layer(kind):
    model = heads(gate="sigmoid", batch_norm=True, dropout=0.1)[kind]
    names = [type(m).__name__ for m in model.modules()]
    hidden = names.count("ReLU")
    assert hidden > 2
    for kind_of_layer in ("BatchNorm1d", "HiddenGate", "Dropout"):
        assert names.count(kind_of_layer) == hidden
    assert model(torch.randn(8, 6)).shape == (8, 3)


@pytest.mark.parametrize("kind", BY_HAND)
def test_state_dict_batches_and_one_graph(kind):
    model, twin = heads()[kind], heads()[kind]
    twin.load_state_dict(model.state_dict())
    for rows in (0, 1, 5):
        x = torch.randn(rows, 6)
        assert torch.equal(model(x), twin(x)) and model(x).shape == (rows, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_refusals():
    for groups in ([[0, 0]], [[1]], [[0], []], []):
        with pytest.raises(ValueError, match="GroupedTowers: argument 'groups': wanted every task"):
            GroupedTowers(6, groups)
    with pytest.raises(ValueError, match="HardShared: argument 'num_tasks': wanted a positive"):
        HardShared(6, 0)
    with pytest.raises(ValueError, match="MMoE: argument 'expert_dims': wanted at least 1"):
        MMoE(6, 2, expert_dims=())
    with pytest.raises(ValueError, match="PLE: argument 'num_shared_experts'"):
        PLE(6, 2, num_shared_experts=0)
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        PLE(6, 2, gate="sigmod")
    for kind, model in heads().items():
        with pytest.raises(ValueError, match=r"'x': wanted shape \(B, 6\), got \(4, 5\)"):
            model(torch.randn(4, 5))
        assert kind
