"""Every op under ``torch.autocast``, and models that run as their plain PyTorch twins do."""

from __future__ import annotations

import copy

import pytest
import torch
from rankers import PRESETS, make_features, small

import lirank_ext
from lirank_ext import nn
from lirank_ext.conversion.swap import use_references
from lirank_ext.library.autocast import cast
from lirank_ext.library.op import OPS, _python_error
from lirank_ext.models import LiRank

HALF = (torch.bfloat16, torch.float16)
RULES = {
    **dict.fromkeys(("low_rank_cross", "outer_attention", "attention_cross"), "lower"),
    **dict.fromkeys(("residual_cross_net", "residual_cross_score"), "lower"),
    "isotonic_calibration": "float32",
}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def lower(dtype):
    return torch.autocast("cpu", dtype)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator)


LAYER = [draw(4, 12), draw(6, 12), draw(6, 12, seed=1), draw(6, 12, seed=2), draw(12, 6), draw(12)]


def test_every_op_has_the_rule_that_is_written_down():
    assert {name: op.autocast_rule for name, op in OPS.items() if op.autocast_rule} == RULES


@pytest.mark.parametrize("dtype", HALF)
def test_layers_compute_in_the_lower_precision(dtype):
    x, q, k, v, u, bias = LAYER
    halves = [t.to(dtype) for t in LAYER]
    calls = {
        "low_rank_cross": lambda x, q, k, v, u, b: lirank_ext.low_rank_cross(x, x, v, u, b),
        "attention_cross": lambda x, *w: lirank_ext.attention_cross(x, x, *w),
        "outer_attention": lambda x, q, k, v, u, b: lirank_ext.outer_attention(q, k, v),
        "net": lambda x, q, k, v, u, b: OPS["residual_cross_net"].overload(
            x, [v, u, b], [q, k, v, u, b], 1.0, []
        ),
    }
    for name, call in calls.items():
        with lower(dtype):
            found = call(x.to(dtype), q, k, v, u, bias)
            plain = call(x, q, k, v, u, bias)
        assert found.dtype == dtype, name
        assert torch.equal(found, call(*halves)) and torch.equal(found, plain), name


def test_a_calibration_computes_in_float32():
    layer = nn.IsotonicCalibration(-4, 4, 0.5, 3)
    logits, features = draw(9), draw(9, 3)
    with lower(torch.bfloat16):
        found = layer(logits.bfloat16(), features)
    assert found.dtype == torch.float32
    added = layer.features(features.bfloat16().float()).bfloat16().float()
    wanted = layer(logits.bfloat16().float(), embedding=added)
    torch.testing.assert_close(found, wanted)


def test_tables_are_read_as_they_are_stored():
    ids, offsets, weights = torch.arange(9), torch.tensor([0, 2, 2, 7]), draw(9)
    bag = nn.HashedEmbeddingBag(8, 1000, 10)
    packed = bag.quantize()
    for module in (bag, packed):
        wanted = module(ids, offsets, weights)
        with lower(torch.bfloat16):
            assert torch.equal(module(ids, offsets, weights), wanted)
            assert module(ids, offsets, weights.bfloat16()).dtype == torch.float32


def test_a_tensor_that_is_given_twice_stays_one():
    x, weight = torch.ones(2, 3), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        first, second, others = cast((x, x, [weight, x]), "cpu", "lower")
    assert first is second is others[1] and first.dtype == torch.bfloat16
    assert others[0] is not first


def test_float64_is_left_alone():
    layer = nn.LowRankCross(12, 6).double()
    x = LAYER[0].double()
    with lower(torch.bfloat16):
        assert torch.equal(layer(x, x), layer(x, x)) and layer(x, x).dtype == torch.float64


def test_gradients_reach_float32_weights():
    layer = nn.LowRankCross(12, 6)
    x = LAYER[0].clone().requires_grad_()
    with lower(torch.bfloat16):
        layer(x, x).float().square().sum().backward()
    exact = [g.clone() for g in (x.grad, *(p.grad for p in layer.parameters()))]
    x.grad = None
    layer.zero_grad()
    layer(x, x).square().sum().backward()
    for found, wanted in zip(exact, (x.grad, *(p.grad for p in layer.parameters())), strict=True):
        assert found.dtype == torch.float32
        # Two products and the square, each rounded to bfloat16's 8 bits.
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


def test_errors_name_what_is_wrong_with_the_call_not_autocast():
    layer = nn.LowRankCross(12, 6)
    with (
        lower(torch.bfloat16),
        pytest.raises(ValueError, match=r"wanted shape \(11, 6\), got \(12, 6\)"),
    ):
        layer(draw(4, 11), draw(4, 11))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_as_their_references_do(name):
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config)
    slow = use_references(copy.deepcopy(model))
    with torch.no_grad():
        exact = model(features)
        with lower(torch.bfloat16):
            found, wanted = model(features), slow(features)
    scale = float(exact.abs().max())
    assert float((found - exact).abs().max()) <= 0.1 * scale
    assert float((wanted - exact).abs().max()) <= 0.1 * scale


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train(name):
    config = small(name)
    model, features = LiRank(config), make_features(config)
    with lower(torch.bfloat16):
        logits = model(features)
        loss = (logits.float() * torch.randn(logits.shape)).sum()
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == p.dtype, name
        assert p.grad.to_dense().isfinite().all(), name


@pytest.mark.parametrize("name", PRESETS)
def test_quantized_presets_run(name):
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config)
    lirank_ext.quantize(model)
    with torch.no_grad():
        exact = model(features)
        with lower(torch.bfloat16):
            found = model(features)
    assert float((found - exact).abs().max()) <= 0.1 * float(exact.abs().max())


def test_compiled_layers_do_the_same():
    net = nn.ResidualCrossNet(12, 6)
    mlp = torch.nn.Sequential(torch.nn.Linear(12, 12), net, nn.GatedMLP([12, 3]))
    x = draw(5, 12)
    with lower(torch.bfloat16), torch.no_grad():
        wanted = mlp(x)
        found = torch.compile(mlp, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, wanted)


def test_a_failure_under_autocast_is_not_taken_for_a_wrong_dtype(monkeypatch):
    """The checks look at the arguments as the op got them."""
    op, failure = OPS["low_rank_cross"], RuntimeError("something else")
    x0, x = torch.randn(3, 8), torch.randn(3, 8).bfloat16()
    args = (x0, x, torch.randn(2, 8), torch.randn(8, 2), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert _python_error(op, failure, args, {}) is failure
    assert isinstance(_python_error(op, failure, args, {}), TypeError)
