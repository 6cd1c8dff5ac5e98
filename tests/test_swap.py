"""``lirank_ext.swap``: what it replaces, what it leaves and why, and that nothing else changes."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn
from torch.nn import functional as F

import lirank_ext
from lirank_ext import swap
from lirank_ext.conversion import swap as conversion
from lirank_ext.nn import (
    FullRankCrossNet,
    IsotonicCalibration,
    LowRankCross,
    LowRankCrossNet,
    MixtureCrossNet,
    ResidualCrossNet,
    reference_cross,
)
from lirank_ext.nn.reference_cross import ReferenceLowRankCross
from lirank_ext.nn.reference_isotonic import ReferenceIsotonicCalibration


@pytest.fixture(autouse=True)
def _no_registrations(monkeypatch):
    monkeypatch.setattr(conversion, "_registered", {})


class Ranker(nn.Module):
    def __init__(self, cross: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.cross = cross
        self.head = nn.Linear(width, 1)
        self.calibration = ReferenceIsotonicCalibration(-4.0, 4.0, 0.5)

    def forward(self, x):
        return self.calibration(self.head(self.cross(x)).squeeze(1))


def agree(one: nn.Module, two: nn.Module, x: torch.Tensor) -> None:
    """Equal outputs and equal gradients of inputs and parameters, whose order may differ."""
    results = []
    for model in (one, two):
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        model.zero_grad()
        out.square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((out, leaf.grad, grads))
    (a, da, pa), (b, db, pb) = results
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(da, db, rtol=1e-4, atol=1e-4)
    assert len(pa) == len(pb)
    for norm_a, norm_b in zip(*(sorted(float(g.norm()) for g in p) for p in (pa, pb)), strict=True):
        assert norm_a == pytest.approx(norm_b, rel=1e-4, abs=1e-5)


# ---- this package's reference modules --------------------------------------------------


def test_reference_modules_become_the_fast_ones():
    model = Ranker(reference_cross.ReferenceResidualCrossNet(12, 4, learn_temperature=True))
    before, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    report = swap(model)
    assert type(model.cross) is ResidualCrossNet
    assert type(model.cross.low_rank[1]) is LowRankCross
    assert type(model.calibration) is IsotonicCalibration
    assert not [m for m in model.modules() if type(m).__name__.startswith("Reference")]
    assert [r.path for r in report.replaced][:2] == ["cross", "cross.low_rank.0"]
    assert len(report.replaced) == 6 and not report.left
    assert list(model.state_dict()) == list(state)
    agree(before, model, torch.randn(9, 12))
    with torch.no_grad():
        x = torch.randn(3, 12)
        torch.testing.assert_close(model(x), before(x), rtol=1e-5, atol=1e-5)


def test_the_fast_ops_are_called(monkeypatch):
    model = nn.Sequential(reference_cross.ReferenceResidualCrossNet(6, 2))
    calls = []
    monkeypatch.setattr(
        "lirank_ext.nn.cross.residual_cross_net", lambda *a: calls.append(a) or a[0]
    )
    with torch.no_grad():
        model(torch.randn(2, 6))
        assert not calls
        swap(model)
        model(torch.randn(2, 6))
    assert len(calls) == 1


def test_the_model_itself_may_be_a_reference_module():
    model = reference_cross.ReferenceLowRankCross(6, 2)
    report = swap(model)
    assert type(model) is LowRankCross
    assert report.replaced[0].paths == ("",) and "(the model)" in str(report)


def test_a_dry_run_changes_nothing():
    model = Ranker(reference_cross.ReferenceResidualCrossNet(12, 4))
    kinds = [type(m) for m in model.modules()]
    report = swap(model, dry_run=True)
    assert [type(m) for m in model.modules()] == kinds
    assert report.dry_run and len(report.replaced) == 6
    assert "6 to be replaced (dry run), 0 left" in str(report)
    assert [r.target for r in swap(model).rows] == [r.target for r in report.rows]


def test_a_second_swap_finds_nothing():
    model = Ranker(reference_cross.ReferenceResidualCrossNet(12, 4))
    swap(model)
    assert not swap(model).rows


def test_optimizers_hooks_and_modes_survive():
    model = Ranker(reference_cross.ReferenceResidualCrossNet(12, 4)).double()
    model.cross.low_rank[0].v.requires_grad_(False)
    model.cross.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model.cross.register_forward_hook(lambda *_: seen.append(1))
    swap(model)
    assert not model.cross.training and model.training
    assert not model.cross.low_rank[0].v.requires_grad
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} == held
    before = model.cross.low_rank[0].u.detach().clone()
    model(torch.randn(5, 12, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert seen and not torch.equal(model.cross.low_rank[0].u, before)


def test_subclasses_are_left_with_the_reason():
    class Mine(reference_cross.ReferenceLowRankCross):
        def forward(self, x0, x):
            return super().forward(x0, x) * 2

    model = nn.ModuleDict({"mine": Mine(6, 2)})
    report = swap(model)
    assert type(model["mine"]) is Mine
    assert "subclass of ReferenceLowRankCross" in report.left[0].reason


def test_parametrized_modules_are_left():
    layer = reference_cross.ReferenceLowRankCross(6, 2)
    torch.nn.utils.parametrize.register_parametrization(layer, "v", nn.Identity())
    report = swap(nn.ModuleList([layer]))
    assert not report.replaced and "subclass" in report.left[0].reason


# ---- other packages, by stand-ins with their parameters and formulas --------------------


def from_package(name: str):
    """Make a class look as if it came from there."""

    def mark(kind: type) -> type:
        kind.__module__, kind.__qualname__ = name, kind.__name__.lstrip("_")
        return kind

    return mark


def parameters(*shape: int, count: int) -> nn.ParameterList:
    return nn.ParameterList(torch.randn(*shape) / shape[-1] ** 0.5 for _ in range(count))


@from_package("torchrec.modules.crossnet")
class _LowRankCrossNet(nn.Module):
    def __init__(self, dim: int, layers: int, rank: int) -> None:
        super().__init__()
        self.W_kernels = parameters(dim, rank, count=layers)
        self.V_kernels = parameters(rank, dim, count=layers)
        self.bias = parameters(dim, count=layers)

    def forward(self, x):
        y = x
        for w, v, b in zip(self.W_kernels, self.V_kernels, self.bias, strict=True):
            y = x * (y @ v.T @ w.T + b) + y
        return y


@from_package("torchrec.modules.crossnet")
class _CrossNet(nn.Module):
    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.kernels = parameters(dim, dim, count=layers)
        self.bias = parameters(dim, 1, count=layers)

    def forward(self, x):
        y = x
        for k, b in zip(self.kernels, self.bias, strict=True):
            y = x * (y @ k.T + b.T) + y
        return y


@from_package("deepctr_torch.layers.interaction")
class _StackedCrossNet(nn.Module):
    def __init__(self, dim: int, layers: int, parameterization: str = "matrix") -> None:
        super().__init__()
        width = dim if parameterization == "matrix" else 1
        self.parameterization = parameterization
        self.kernels = nn.Parameter(torch.randn(layers, dim, width) / dim**0.5)
        self.bias = nn.Parameter(torch.randn(layers, dim, 1))

    forward = _CrossNet.forward


_StackedCrossNet.__qualname__ = "CrossNet"


def mixture(x, u, v, c, bias, gates, activation):
    """Row by row and expert by expert; v: (experts, rank, dim)."""
    rows = []
    for x0 in x:
        y = x0
        for i in range(len(u)):
            g = torch.ones(1)
            if gates:
                g = torch.softmax(torch.cat([gate(y) for gate in gates]), 0)
            total = torch.zeros_like(y)
            for e in range(len(g)):
                hidden = activation(c[i][e] @ activation(v[i][e] @ y))
                total = total + g[e] * x0 * (u[i][e] @ hidden + bias[i].flatten())
            y = total + y
        rows.append(y)
    return torch.stack(rows)


@from_package("torchrec.modules.crossnet")
class _LowRankMixtureCrossNet(nn.Module):
    def __init__(self, dim, layers, experts, rank, activation=torch.relu) -> None:
        super().__init__()
        self.U_kernels = parameters(experts, dim, rank, count=layers)
        self.V_kernels = parameters(experts, rank, dim, count=layers)
        self.C_kernels = parameters(experts, rank, rank, count=layers)
        self.bias = parameters(dim, 1, count=layers)
        self.gates = None
        if experts > 1:
            self.gates = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(experts))
        self._activation = activation

    def forward(self, x):
        kernels = (self.U_kernels, self.V_kernels, self.C_kernels, self.bias)
        return mixture(x, *kernels, self.gates, self._activation)


class _CrossNetMix(nn.Module):
    def __init__(self, dim: int, layers: int = 2, rank: int = 3, experts: int = 4) -> None:
        super().__init__()
        self.U_list = parameters(experts, dim, rank, count=layers)
        self.V_list = parameters(experts, dim, rank, count=layers)
        self.C_list = parameters(experts, rank, rank, count=layers)
        self.bias = parameters(dim, 1, count=layers)
        self.gating = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(experts))

    def forward(self, x):
        v = [t.transpose(1, 2) for t in self.V_list]
        return mixture(x, self.U_list, v, self.C_list, self.bias, self.gating, torch.tanh)


@from_package("fuxictr.pytorch.layers.interactions.cross_net")
class _FuxiMix(_CrossNetMix):
    pass


_FuxiMix.__qualname__ = "CrossNetMix"


@from_package("deepctr_torch.layers.interaction")
class _DeepMix(_CrossNetMix):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        for name in ("U_list", "V_list", "C_list", "bias"):
            stacked = nn.Parameter(torch.stack([t.detach() for t in getattr(self, name)]))
            delattr(self, name)
            setattr(self, name, stacked)


_DeepMix.__qualname__ = "CrossNetMix"


@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda: _LowRankCrossNet(12, 3, 4), LowRankCrossNet),
        (lambda: _CrossNet(12, 2), FullRankCrossNet),
        (lambda: _StackedCrossNet(12, 2), FullRankCrossNet),
        (lambda: _LowRankMixtureCrossNet(12, 2, 3, 4), MixtureCrossNet),
        (lambda: _LowRankMixtureCrossNet(12, 2, 1, 4, torch.tanh), MixtureCrossNet),
        (lambda: _FuxiMix(12), MixtureCrossNet),
        (lambda: _DeepMix(12), MixtureCrossNet),
    ],
)
@pytest.mark.parametrize("batch", [1, 7])
def test_foreign_cross_nets(make, target, batch):
    model = Ranker(make())
    before = copy.deepcopy(model)
    held, state = {id(p) for p in model.parameters()}, torch.random.get_rng_state()
    report = swap(model)
    assert torch.equal(torch.random.get_rng_state(), state), "no random number was drawn"
    assert type(model.cross) is target and report.replaced[0].target == target.__name__
    assert {id(p) for p in model.parameters()} == held
    agree(before, model, torch.randn(batch, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    model.to(torch.float64)(torch.randn(batch, 12, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: _LowRankCrossNet(6, 2, 2), lambda: _CrossNet(6, 2)])
def test_more_axes_than_two(make):
    model = nn.Sequential(make())
    x = torch.randn(2, 3, 6)
    want = model(x)
    swap(model)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


@from_package("fuxictr.pytorch.layers.interactions.cross_net")
class _CrossNetV2(nn.Module):
    pass


@from_package("torchrec.modules.crossnet")
class _VectorCrossNet(nn.Module):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _CrossNetV2(), "no linear layers 'cross_layers'"),
        (lambda: _VectorCrossNet(), "bias is outside the product"),
        (lambda: _StackedCrossNet(6, 2, "vector"), "bias is outside the product"),
        (lambda: _LowRankMixtureCrossNet(6, 2, 2, 3, nn.Softmax(1)), "not known to be elementwise"),
    ],
)
def test_what_has_no_faster_equal_is_left_with_the_reason(make, reason):
    model = Ranker(make())
    kind = type(model.cross)
    report = swap(model)
    assert type(model.cross) is kind
    assert len(report.left) == 1 and report.left[0].path == "cross"
    assert reason in report.left[0].reason and reason in str(report)


def test_another_version_with_other_parameters_is_left():
    model = Ranker(_LowRankCrossNet(6, 2, 2))
    model.cross.bias = parameters(6, 1, count=2)
    assert "differ from those that swap expects" in swap(model).left[0].reason
    del model.cross.bias
    assert "no 'bias'" in swap(model).left[0].reason


def test_foreign_modules_with_hooks_are_left():
    model = Ranker(_FuxiMix(6))
    handle = model.cross.gating[0].register_forward_hook(lambda *_: None)
    assert "forward hooks (in 'gating.0')" in swap(model).left[0].reason
    handle.remove()
    assert type(model.cross) is _FuxiMix
    swap(model)
    assert type(model.cross) is MixtureCrossNet


def test_a_foreign_model_cannot_replace_itself():
    model = _LowRankCrossNet(6, 2, 2)
    report = swap(model)
    assert not report.replaced and "the model itself" in report.left[0].reason


def test_names_that_look_like_cross_layers_are_mentioned():
    class MyCrossLayer(nn.Linear):
        pass

    report = swap(nn.ModuleDict({"a": MyCrossLayer(2, 2), "b": nn.CrossEntropyLoss()}))
    assert [r.path for r in report.left] == ["a"]
    assert "swap.register" in report.left[0].reason


@pytest.mark.parametrize(
    ("module", "kind", "sizes"),
    [
        ("torchrec.modules.crossnet", "LowRankCrossNet", (12, 2, 3)),
        ("torchrec.modules.crossnet", "CrossNet", (12, 2)),
        ("torchrec.modules.crossnet", "LowRankMixtureCrossNet", (12, 2, 3, 4)),
        ("fuxictr.pytorch.layers.interactions.cross_net", "CrossNetMix", (12,)),
        ("deepctr_torch.layers.interaction", "CrossNet", (12, 2, "matrix")),
        ("deepctr_torch.layers.interaction", "CrossNetMix", (12, 3)),
    ],
)
def test_the_packages_themselves(module, kind, sizes):
    model = Ranker(getattr(pytest.importorskip(module), kind)(*sizes))
    before = copy.deepcopy(model)
    swap(model)
    assert type(model.cross).__module__ == "lirank_ext.nn.cross_net"
    agree(before, model, torch.randn(7, 12))


def test_no_other_package_is_imported():
    code = (
        "import sys, torch, lirank_ext\n"
        "lirank_ext.swap(torch.nn.Sequential(torch.nn.Linear(2, 2)))\n"
        "assert not {'torchrec', 'fuxictr', 'deepctr_torch'} & set(sys.modules)\n"
        "try:\n"
        "    import lirank_ext.swap\n"
        "except ModuleNotFoundError:\n"
        "    pass\n"
        "assert callable(lirank_ext.swap) and callable(lirank_ext.swap.register)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- types of the user -----------------------------------------------------------------


class MyCross(nn.Module):
    def __init__(self, dim: int = 6, rank: int = 2) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim)

    def forward(self, x):
        return x * self.up(self.down(x)) + x


class FastCross(nn.Module):
    def __init__(self, cross: LowRankCross) -> None:
        super().__init__()
        self.cross = cross

    def forward(self, x):
        return self.cross(x, x)


def convert(module: MyCross) -> nn.Module:
    made = FastCross(LowRankCross(6, 2))
    made.cross.v, made.cross.u = module.down.weight, module.up.weight
    made.cross.bias = module.up.bias
    return made


def test_a_registered_type_is_replaced_at_all_its_paths():
    assert swap.register(MyCross, convert) is convert
    shared = MyCross()
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU(), shared), "b": shared})
    before, x = copy.deepcopy(model), torch.randn(4, 6)
    report = swap(model)
    assert model["a"][0] is model["a"][2] is model["b"]
    assert type(model["b"]) is FastCross
    assert report.replaced[0].paths == ("a.0", "a.2", "b") and len(report.rows) == 1
    agree(before["a"], model["a"], x)


def test_register_decorates():
    @swap.register(MyCross)
    def mine(module):
        return convert(module)

    assert callable(mine)
    assert swap(nn.Sequential(MyCross())).replaced[0].target.endswith("FastCross")


def test_new_parameters_are_settled_and_said():
    def copied(module):
        made = convert(module)
        for name in ("v", "u", "bias"):
            value = getattr(made.cross, name).detach().float().clone()
            setattr(made.cross, name, nn.Parameter(value))
        return made

    swap.register(MyCross, copied)
    model = nn.Sequential(MyCross()).to(torch.bfloat16).eval().requires_grad_(False)
    report = swap(model)
    assert "optimizer" in report.replaced[0].reason
    assert not model[0].training and not model[0].cross.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, False)}


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_failing_convert_is_named_and_the_model_unchanged(dry_run):
    class Other(MyCross):
        pass

    def broken(module):
        raise KeyError("rank")

    swap.register(MyCross, convert)
    swap.register(Other, broken)
    reference = reference_cross.ReferenceResidualCrossNet(6, 2)
    model = nn.ModuleDict({"net": reference, "good": MyCross(), "bad": Other()})
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match=r"'bad' \(.*Other\): convert failed.*KeyError: 'rank'"):
        swap(model, dry_run=dry_run)
    assert [type(m) for m in model.modules()] == kinds


def test_a_convert_that_returns_no_module_is_refused():
    swap.register(MyCross, lambda m: None)
    model = nn.Sequential(MyCross())
    with pytest.raises(TypeError, match=r"'0'.*wanted a torch.nn.Module, got NoneType"):
        swap(model)
    assert type(model[0]) is MyCross


def test_a_convert_may_leave_a_module():
    def mine(module):
        raise swap.Leave("too narrow to gain")

    swap.register(MyCross, mine)
    assert swap(nn.Sequential(MyCross())).left[0].reason == "too narrow to gain"
    swap.register(MyCross, lambda m: m)
    assert "returned the module itself" in swap(nn.Sequential(MyCross())).left[0].reason


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((MyCross(), convert), "source_type"),
        ((int, convert), "source_type"),
        ((MyCross, 3), "convert"),
    ],
)
def test_bad_registrations_are_refused(arguments, argument):
    with pytest.raises(TypeError, match=f"swap.register: {argument}"):
        swap.register(*arguments)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: wanted a torch.nn.Module, got list"):
        swap([nn.Linear(2, 2)])


# ---- the report ------------------------------------------------------------------------


def test_the_report_prints_as_a_table():
    model = Ranker(_StackedCrossNet(6, 2, "vector"))
    lines = str(swap(model)).splitlines()
    assert lines[0] == "swap: 1 replaced, 1 left"
    assert lines[1].split() == ["module", "was", "now", "note"]
    assert any(line.startswith("calibration ") and "IsotonicCalibration" in line for line in lines)
    assert any(line.startswith("cross ") and "deepctr_torch.CrossNet" in line for line in lines)
    assert str(swap(nn.Linear(2, 2))) == "swap: 0 replaced, 0 left"


# ---- the stacks by themselves ----------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRankCrossNet(8, 3, 2),
        lambda: FullRankCrossNet(8, 2),
        lambda: MixtureCrossNet(8, 3, 2, 2),
        lambda: MixtureCrossNet(8, 3, 1, 1, F.relu),
    ],
)
def test_stacks_train_compile_and_export(make):
    net, x = make(), torch.randn(5, 8)
    want = net(x)
    want.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), want)


@pytest.mark.parametrize("kind", [LowRankCrossNet, MixtureCrossNet])
def test_stacks_refuse_sizes_that_are_not_positive(kind):
    with pytest.raises(ValueError, match="num_layers"):
        kind(8, 3, 0)


def test_the_report_names_the_module_it_is_about():
    assert lirank_ext.swap is swap


def test_the_report_says_where_nothing_is_faster(monkeypatch):
    report = lirank_ext.swap(nn.ModuleList([ReferenceLowRankCross(8, 2)]))
    monkeypatch.setattr("lirank_ext.conversion.swap_report.extension", object())
    assert "references run" not in str(report)
    monkeypatch.setattr("lirank_ext.conversion.swap_report.extension", None)
    monkeypatch.setattr("lirank_ext.conversion.swap_report.why_no_extension", "no compiler")
    assert str(report).endswith("No faster on a CPU here: the references run (no compiler).")
