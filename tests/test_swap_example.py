"""``swap(model, example=...)``, what survives a swap, and sources of further packages."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lirank_ext import swap
from lirank_ext.conversion import example
from lirank_ext.nn import FullRankCrossNet, LowRankCross, LowRankCrossNet, MixtureCrossNet
from lirank_ext.nn.reference_cross import ReferenceLowRankCross, ReferenceResidualCrossNet


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(conversion, "_registered", {})


conversion = sys.modules["lirank_ext.conversion.swap"]


def package(name, kind):
    """The class, as if it came from a package."""

    def decorate(cls):
        cls.__module__, cls.__qualname__ = f"{name}.layers", kind
        return cls

    return decorate


def weights(*shape, count=2):
    return nn.ParameterList(nn.Parameter(torch.randn(shape) * 0.3) for _ in range(count))


@package("torchrec", "LowRankCrossNet")
class TorchRec(nn.Module):
    def __init__(self, dim=8, rank=3):
        super().__init__()
        self.W_kernels, self.V_kernels = weights(dim, rank), weights(rank, dim)
        self.bias = weights(dim)

    def forward(self, x):
        y = x
        for w, v, b in zip(self.W_kernels, self.V_kernels, self.bias, strict=True):
            y = x * (y @ v.T @ w.T + b) + y
        return y


@package("tzrec", "CrossV2")
class EasyRec(nn.Module):
    def __init__(self, dim=8, rank=3):
        super().__init__()
        self.u_kernels = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.v_kernels = nn.ModuleList(nn.Linear(rank, dim) for _ in range(2))

    def forward(self, x):
        y = x
        for first, second in zip(self.u_kernels, self.v_kernels, strict=True):
            y = x * second(first(y)) + y
        return y


@package("fuxictr", "CrossNetV2")
class Fuxi(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.cross_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x):
        y = x
        for layer in self.cross_layers:
            y = y + x * layer(y)
        return y


@package("torch_rechub", "CrossNetMix")
class RecHubMix(nn.Module):
    def __init__(self, dim=8, rank=3, experts=4):
        super().__init__()
        self.u_list, self.v_list = weights(experts, dim, rank), weights(experts, dim, rank)
        self.c_list, self.bias = weights(experts, rank, rank), weights(dim, 1)
        self.gating = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(experts))

    def forward(self, x):
        y = x
        for u, v, c, b in zip(self.u_list, self.v_list, self.c_list, self.bias, strict=True):
            gate = torch.cat([g(y) for g in self.gating], 1).softmax(1)
            hidden = torch.tanh(torch.einsum("edr,bd->ebr", v, y))
            hidden = torch.tanh(torch.einsum("eqr,ebr->ebq", c, hidden))
            experts = x * (torch.einsum("edr,ebr->ebd", u, hidden) + b.flatten())
            y = torch.einsum("be,ebd->bd", gate, experts) + y
        return y


@package("torch_rechub", "CrossNetV2")
class RecHubV2(nn.Module):
    def forward(self, x):
        return x


@package("torch_rechub", "CrossNetwork")
class RecHub(nn.Module):
    def forward(self, x):
        return x


SOURCES = {
    "torchrec": (TorchRec, LowRankCrossNet),
    "tzrec": (EasyRec, LowRankCrossNet),
    "fuxictr": (Fuxi, FullRankCrossNet),
    "torch_rechub": (RecHubMix, MixtureCrossNet),
}


def ranker(cross, dim=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(dim, dim), cross, nn.Linear(dim, 1))


@pytest.mark.parametrize("name", SOURCES)
def test_names_order_checkpoints_and_optimizer_states_survive(name):
    make, target = SOURCES[name]
    model = ranker(make())
    original = copy.deepcopy(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    x = torch.randn(5, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    original(x).sum().backward()
    before = {k: (id(p), p.shape) for k, p in model.named_parameters()}
    report = swap(model, example=x)
    assert type(model[1]) is target and len(report.replaced) == 1, str(report)
    assert {k: (id(p), p.shape) for k, p in model.named_parameters()} == before
    assert [*model.state_dict()] == [*original.state_dict()]
    model.load_state_dict(original.state_dict())
    averaged.update_parameters(model)
    # Sums of float32 in another order.
    torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-5)
    model(x).sum().backward()
    for (key, p), q in zip(model.named_parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=key)
    optimizer.step()
    other = torch.optim.Adam(original.parameters(), lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    copy.deepcopy(model)(x)


@pytest.mark.parametrize("kind", [RecHubV2, RecHub])
def test_nets_with_the_bias_outside_are_left(kind):
    assert "bias is outside the product" in swap(ranker(kind())).left[0].reason


@pytest.mark.parametrize("kind", [EasyRec, Fuxi, RecHubMix])
def test_another_version_is_left(kind):
    model = ranker(kind())
    del model[1]._modules[next(iter(model[1]._modules))]
    assert "differ from those that swap expects" in swap(model).left[0].reason


def test_torch_rechub_itself():
    layers = pytest.importorskip("torch_rechub.basic.layers")
    model = ranker(layers.CrossNetMix(8))
    original, x = copy.deepcopy(model), torch.randn(5, 8)
    assert len(swap(model, example=x).replaced) == 1
    # Sums of float32 in another order.
    torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


def test_one_parametrized_layer_is_left_and_the_others_replaced():
    model = nn.Sequential(TorchRec(), TorchRec())
    parametrize.register_parametrization(model[0].W_kernels, "0", Doubled())
    report = swap(model)
    assert [r.path for r in report.replaced] == ["1"]
    assert "parametrizations" in report.left[0].reason
    assert type(model[0]) is TorchRec and type(model[1]) is LowRankCrossNet


def test_what_compile_did_is_said_to_be_lost():
    model = nn.Sequential(TorchRec(), TorchRec())
    model[0].compile(backend="eager")
    reasons = [row.reason for row in swap(model).replaced]
    assert "call compile()" in reasons[0] and not reasons[1]


# ---- with an example ---------------------------------------------------------------------------


class Mine(nn.Module):
    """Like a cross layer, but for a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.down, self.up = nn.Linear(8, 3, bias=False), nn.Linear(3, 8)
        self.factor = factor

    def forward(self, x0, x):
        return x0 * self.up(self.down(x)) * self.factor + x


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(x, y)
        return self.dropout(y)


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        (torch.tensor([100_001]), torch.tensor([100_000]), "values off by up to 1"),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), "torch.float32"),
        (torch.tensor([1.0001]).double(), torch.tensor([1.0]).double(), "values off"),
        (torch.tensor([torch.nan]), torch.tensor([1.0]), "values off"),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), "values off"),
        (torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf]), ""),
    ],
)
def test_only_rounding_makes_no_difference(found, wanted, words):
    said = example.differ(found, wanted)
    assert words in said and bool(said) == bool(words)


def test_what_differs_on_the_example_is_taken_back():
    swap.register(Mine, swap.low_rank)
    model, x = Stack(Mine(), Mine(3.0), ReferenceLowRankCross(8, 3)), torch.randn(5, 8)
    original = copy.deepcopy(model)
    report = swap(model, example=x)
    assert [type(layer) for layer in model.layers] == [LowRankCross, Mine, LowRankCross]
    assert "values off by up to" in report.left[0].reason
    assert [r.path for r in report.left] == ["layers.1"]
    assert model.training and model.dropout.training
    torch.testing.assert_close(model.eval()(x), original.eval()(x))


def test_a_dry_run_compares_too():
    swap.register(Mine, swap.low_rank)
    model = Stack(Mine(), Mine(3.0))
    report = swap(model, dry_run=True, example=torch.randn(5, 8))
    assert (len(report.replaced), len(report.left)) == (1, 1)
    assert {type(layer) for layer in model.layers} == {Mine}


def test_all_is_taken_back_if_only_the_whole_differs():
    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross = ReferenceResidualCrossNet(8, 3)

        def forward(self, x):
            return self.cross(x) * (2 if type(self.cross).__name__.startswith("Ref") else 1)

    model = Peeks()
    report = swap(model, example=torch.randn(5, 8))
    assert type(model.cross) is ReferenceResidualCrossNet
    assert not report.replaced and "the whole model then gives" in report.left[0].reason


def test_what_the_example_does_not_reach_is_said():
    model = nn.Sequential(nn.Identity())
    model[0].unused = ReferenceLowRankCross(8, 3)
    report = swap(model, example=torch.randn(5, 8))
    assert "the example does not reach it" in report.replaced[0].reason


class OfOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 3, bias=False), nn.Linear(3, 8)

    def forward(self, x):
        return x * self.b(self.a(x)) + x


class Full(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(8, 8)

    def forward(self, x0, x):
        return x0 * self.w(x) + x


def test_layers_written_by_hand_are_recognized_and_offered():
    model = nn.Sequential(OfOne(), Stack(Mine(), Mine(3.0), Full()))
    x = torch.randn(5, 8)
    report = swap(model, example=x)
    reasons = {r.path: r.reason for r in report.left}
    assert not report.replaced
    assert reasons.keys() == {"0", "1.layers.0", "1.layers.2"}
    for path, kind in (("0", "OfOne"), ("1.layers.0", "Mine")):
        assert "low-rank cross layer" in reasons[path]
        assert f"swap.register({kind}, swap.low_rank)" in reasons[path]
    assert "full-rank cross layer" in reasons["1.layers.2"]
    swap.register(OfOne, swap.low_rank)
    swap.register(Mine, swap.low_rank)
    original = copy.deepcopy(model)
    assert len(swap(model, example=x).replaced) == 2
    torch.testing.assert_close(model.eval()(x), original.eval()(x))
    assert type(model[0]) is LowRankCrossNet and type(model[1].layers[0]) is LowRankCross


# ---- converts that lose something --------------------------------------------------------------


def test_a_convert_that_drops_trained_weights_is_refused():
    swap.register(Mine, lambda module: LowRankCross(8, 3))
    model = Stack(Mine())
    report = swap(model)
    assert type(model.layers[0]) is Mine
    assert "drops the values of 'down.weight'" in report.left[0].reason


def test_new_parameters_inside_data_parallel_are_left(tmp_path):
    def copied(module):
        made = LowRankCross(8, 3)
        made.load_state_dict(
            {"v": module.down.weight, "u": module.up.weight, "bias": module.up.bias}
        )
        return made

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        swap.register(Mine, copied)
        wrapped = nn.parallel.DistributedDataParallel(Stack(Mine()))
        assert "DistributedDataParallel" in swap(wrapped).left[0].reason
        swap.register(Mine, swap.low_rank)
        x = torch.randn(5, 8)
        assert len(swap(wrapped, example=x).replaced) == 1
        wrapped(x).sum().backward()
        assert all(p.grad is not None for p in wrapped.parameters())
    finally:
        torch.distributed.destroy_process_group()
    assert len(swap(Stack(Mine())).replaced) == 1
