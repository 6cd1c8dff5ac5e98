from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lirank_ext.nn import GatedMLP


def times(layer, vector):
    pairs = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in pairs]


def by_hand(model, x, s):
    """The MLP in plain Python.

    Hidden layers are a = relu(W x + b), then a * s(G a + c) / s(1). The last layer is linear.
    """
    linears = [m for m in model.layers if isinstance(m, nn.Linear)]
    gates = [m for m in model.layers if type(m).__name__ == "HiddenGate"]
    out = []
    for a in x.tolist():
        for linear, gate in zip(linears[:-1], gates, strict=True):
            a = [max(0.0, v) for v in times(linear, a)]
            scores = times(gate, a)
            a = [v * s(z) / s(1.0) for v, z in zip(a, scores, strict=True)]
        out.append(times(linears[-1], a))
    return torch.tensor(out, dtype=x.dtype)


def shaken(model):
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize(
    ("gate", "s"), [("tanh", math.tanh), ("sigmoid", lambda z: 1 / (1 + math.exp(-z)))]
)
def test_formula(gate, s):
    model = shaken(GatedMLP([5, 7, 3, 2], gate).double())
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(model, x, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", ["tanh", "sigmoid"])
def test_gatenets_own_formula_is_the_case_of_zero_bias(gate):
    model = shaken(GatedMLP([4, 6, 2], gate).double())
    first, _, hidden, last = model.layers
    nn.init.zeros_(hidden.bias)
    x = torch.randn(9, 4, dtype=torch.float64)
    a = torch.relu(first(x))
    gated = a * getattr(torch, gate)(a @ hidden.weight.T)
    # The next layer's weights, times the constant, are the weights of GateNet's network.
    constant = 1 / getattr(torch, gate)(torch.ones((), dtype=torch.float64))
    want = gated @ (constant * last.weight).T + last.bias
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", ["tanh", "sigmoid"])
def test_passes_the_signal_at_first_and_learns_at_once(gate):
    dims = [8, 16, 16, 16, 16, 4]
    model, plain = GatedMLP(dims, gate), GatedMLP(dims, None)
    linears = [[m for m in k.layers if isinstance(m, nn.Linear)] for k in (model, plain)]
    for ours, theirs in zip(*linears, strict=True):
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(32, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-6, atol=1e-7)
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_gate_as_gatenet_starts_it_shrinks_the_signal():
    """Why the start differs: tanh of small scores, four layers deep, leaves almost nothing."""
    dims = [64] * 6
    ours, theirs = GatedMLP(dims), GatedMLP(dims)
    theirs.load_state_dict(ours.state_dict())
    for layer in theirs.layers:
        if type(layer).__name__ == "HiddenGate":
            nn.init.normal_(layer.weight, std=0.05)
            nn.init.zeros_(layer.bias)
    x = torch.randn(256, 64)
    bias = ours.layers[-1].bias
    assert (theirs(x) - bias).std() < 0.1 * (ours(x) - bias).std()


def test_gradcheck():
    model = shaken(GatedMLP([3, 4, 2]).double())
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    names = dict(model.named_parameters())

    def call(x, *weights):
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *names.values()))


def test_batch_norm_stands_before_the_relu_and_dropout_behind_the_gate():
    model = GatedMLP([3, 4, 4, 1], batch_norm=True, dropout=0.25)
    kinds = [type(m).__name__ for m in model.layers]
    hidden = ["Linear", "BatchNorm1d", "ReLU", "HiddenGate", "Dropout"]
    assert kinds == hidden * 2 + ["Linear"]
    assert [m.p for m in model.layers if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    model.eval()
    x = torch.randn(5, 3)
    assert torch.equal(model(x), model(x))
    assert model.train()(x).shape == (5, 1)


def test_hidden_output():
    x = torch.randn(20, 3)
    model = GatedMLP([3, 6], linear_output=False)
    torch.testing.assert_close(model(x), torch.relu(model.layers[0](x)))
    assert (model(x) >= 0).all()


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_any_number_of_rows(rows):
    assert GatedMLP([3, 4, 2], "sigmoid")(torch.randn(rows, 3)).shape == (rows, 2)


def test_compiles_in_one_graph_with_the_same_gradients():
    model = shaken(GatedMLP([6, 8, 8, 1]))
    twin = GatedMLP([6, 8, 8, 1])
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(10, 6)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    model(x).sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_refusals():
    for dims in ([3], [3, 0], 3, [3, 2.0], [3, True]):
        with pytest.raises(ValueError, match="GatedMLP: argument 'dims': wanted at least 2"):
            GatedMLP(dims)
    with pytest.raises(ValueError, match=r"'gate': .*got 'tahn' \(did you mean 'tanh'\?\)"):
        GatedMLP([3, 2], "tahn")
    for dropout in (-0.1, 1.0, "a"):
        with pytest.raises(ValueError, match=r"'dropout': wanted a number in \[0, 1\)"):
            GatedMLP([3, 2], dropout=dropout)
    with pytest.raises(ValueError, match=r"'x': wanted shape \(B, 3\), got \(4, 2\)"):
        GatedMLP([3, 2])(torch.randn(4, 2))
