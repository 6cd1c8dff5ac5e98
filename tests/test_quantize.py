"""``lirank_ext.quantize``: which tables it replaces, which it leaves, and what it reports."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn

import lirank_ext
from lirank_ext import quantize
from lirank_ext.nn.hashed_embedding import HashedEmbeddingBag, QuantizedHashedEmbeddingBag
from lirank_ext.nn.quantized_embedding import QuantizedEmbedding, QuantizedEmbeddingBag
from lirank_ext.nn.reference_hashed_embedding import ReferenceHashedEmbeddingBag

OFFSETS = torch.tensor([0, 3, 3, 5])
INDICES = torch.tensor([1, 7, 7, 0, 19, 4, 4])


def hashed(kind: type = HashedEmbeddingBag, **options) -> nn.Module:
    return kind(16, num_buckets=1000, num_remainders=10, **options)


def steps(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(N, 1): the distance of two codes of each row."""
    return (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / (2**bits - 1)


# ---- what is replaced ------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_every_kind_of_table_is_replaced(bits):
    model = nn.ModuleDict(
        {
            "plain": nn.Embedding(20, 64, padding_idx=3),
            "bag": nn.EmbeddingBag(20, 24, mode="mean"),
            "last": nn.EmbeddingBag(20, 16, mode="sum", include_last_offset=True),
            "hashed": hashed(seed=5),
            "reference": hashed(ReferenceHashedEmbeddingBag, mode="mean", prehashed=True),
            "other": nn.Linear(4, 4),
        }
    )
    before = copy.deepcopy(model)
    report = quantize(model, bits)
    kinds = [type(m) for m in model.values()]
    bag, hash_bag = QuantizedEmbeddingBag, QuantizedHashedEmbeddingBag
    assert kinds == [QuantizedEmbedding, bag, bag, hash_bag, hash_bag, nn.Linear]
    assert not report.left and len(report.replaced) == 3 + 2 * 4
    assert {m.bits for m in list(model.values())[:5]} == {bits}

    scale = float(
        max(steps(w.detach(), bits).max() for n, w in before.named_parameters() if "other" not in n)
    )
    for name, inputs in {
        "plain": (torch.tensor([[3, 0], [19, 4]]),),
        "bag": (INDICES, OFFSETS),
        "last": (INDICES, torch.tensor([0, 3, 3, 5, 7])),
        "hashed": (INDICES * 123_456_789, OFFSETS),
        "reference": (INDICES * 0x123456789ABCDEF, OFFSETS),
    }.items():
        want, got = before[name](*inputs), model[name](*inputs)
        # At most three rows are summed, of four tables, each half a step off.
        torch.testing.assert_close(got, want, rtol=0, atol=3 * 4 * scale * 0.51)
        assert not torch.equal(got, want)


def test_the_look_ups_are_those_of_the_dequantized_table():
    model = nn.Sequential(nn.Embedding(50, 10))
    weight = model[0].weight.detach().clone()
    quantize(model)
    rows = lirank_ext.dequantize_rows(*lirank_ext.quantize_rows(weight, 8))
    torch.testing.assert_close(model(torch.arange(50)), rows, rtol=0, atol=1e-6)


def test_modes_and_state_dicts_survive():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 1)).eval()
    held = {id(p) for p in model[1].parameters()}
    quantize(model)
    assert not model[0].training
    assert {id(p) for p in model.parameters()} == held
    twin = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 1))
    quantize(twin)
    twin.load_state_dict(model.state_dict())
    ids = torch.arange(20)
    assert torch.equal(twin(ids), model(ids))


def test_shared_tables_are_quantized_once():
    shared, tied = nn.Embedding(20, 8), nn.EmbeddingBag(20, 8)
    tied.weight = shared.weight
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared, "c": tied})
    report = quantize(model)
    assert model["a"][0] is model["b"]
    assert model["c"].packed is model["b"].packed
    assert len(report.rows) == 1
    assert report.rows[0].paths == ("a.0.weight", "b.weight", "c.weight")
    assert report.bytes_before == 20 * 8 * 4


def test_tables_shared_among_hashed_bags_are_stored_once():
    model = nn.ModuleDict({"user": hashed(), "item": hashed()})
    model["item"].remainder_b = model["user"].remainder_b
    report = quantize(model)
    assert model["item"].remainder_b is model["user"].remainder_b
    assert model["item"].quotient_b is not model["user"].quotient_b
    assert len(report.rows) == 7


def test_a_second_call_finds_nothing():
    model = nn.ModuleDict({"a": nn.Embedding(20, 8), "h": hashed()})
    quantize(model)
    assert not quantize(model).rows


def test_swap_then_quantize():
    model = nn.ModuleDict({"h": hashed(ReferenceHashedEmbeddingBag)})
    before = copy.deepcopy(model)
    assert lirank_ext.swap(model).replaced[0].target == "HashedEmbeddingBag"
    ids = torch.randint(-(2**62), 2**62, (40,))
    torch.testing.assert_close(model["h"](ids), before["h"](ids), rtol=1e-6, atol=1e-6)
    quantize(model)
    torch.testing.assert_close(model["h"](ids), before["h"](ids), rtol=0, atol=0.05)


# ---- what is left ----------------------------------------------------------------------


def tied() -> nn.Module:
    model = nn.Module()
    model.table, model.head = nn.Embedding(20, 8), nn.Linear(8, 20)
    model.head.weight = model.table.weight
    return model


def held(table: nn.Module) -> nn.Module:
    return nn.ModuleDict({"table": table})


def bad_row() -> nn.Module:
    table = nn.Embedding(20, 8)
    with torch.no_grad():
        table.weight[7, 3] = float("nan")
    return held(table)


def hooked() -> nn.Module:
    table = nn.Embedding(20, 8)
    table.register_forward_hook(lambda *_: None)
    return held(table)


def parametrized() -> nn.Module:
    table = nn.Embedding(20, 8)
    torch.nn.utils.parametrize.register_parametrization(table, "weight", nn.Identity())
    return held(table)


class MyEmbedding(nn.Embedding):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: held(nn.Embedding(20, 8, max_norm=1.0)), "max_norm"),
        (lambda: held(nn.EmbeddingBag(20, 8, max_norm=1.0)), "max_norm"),
        (lambda: held(nn.Embedding(20, 8).double()), "float64"),
        (lambda: held(MyEmbedding(20, 8)), "a subclass of Embedding"),
        (parametrized, "a subclass of Embedding"),
        (tied, "also head.weight, which stays"),
        (bad_row, "7"),
        (hooked, "forward hooks"),
        (lambda: nn.Embedding(20, 8), "the model itself: use QuantizedEmbedding.from_float"),
    ],
)
def test_what_cannot_be_quantized_is_left_with_the_reason(make, reason):
    model = make()
    kinds = [type(m) for m in model.modules()]
    report = quantize(model)
    assert [type(m) for m in model.modules()] == kinds
    assert not report.replaced and reason in report.left[0].reason
    assert report.bytes_before == report.bytes_after > 0
    assert "left" in str(report) and reason in str(report)


def test_a_table_that_stays_keeps_those_tied_to_it():
    one, two, free = nn.Embedding(20, 8), nn.EmbeddingBag(20, 8, max_norm=1.0), nn.Embedding(20, 8)
    two.weight = one.weight
    model = nn.ModuleDict({"one": one, "two": two, "free": free})
    report = quantize(model)
    assert type(model["one"]) is nn.Embedding and type(model["free"]) is QuantizedEmbedding
    assert [(r.path, r.target) for r in report.rows] == [
        ("one.weight", None),
        ("free.weight", "QuantizedEmbedding"),
    ]
    assert "two.weight, which stays" in report.left[0].reason


@pytest.mark.parametrize("bits", [0, 2, 16, "8"])
def test_other_widths_are_refused(bits):
    model = held(nn.Embedding(20, 8))
    with pytest.raises(ValueError, match="quantize: bits: wanted 8 or 4"):
        quantize(model, bits)
    assert type(model["table"]) is nn.Embedding


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: wanted a torch.nn.Module, got dict"):
        quantize({})


# ---- the report ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_and_errors(bits, monkeypatch):
    monkeypatch.setattr(
        "lirank_ext.conversion.quantize.CHUNK", 7
    )  # the worst row is past the first chunk
    model = held(nn.Embedding(30, 64))
    with torch.no_grad():
        model["table"].weight[23] *= 50
    weight = model["table"].weight.detach().clone()
    report = quantize(model, bits)
    row = report.replaced[0]
    assert (row.rows, row.dim, row.worst_row) == (30, 64, 23)
    assert row.bytes_before == report.bytes_before == 30 * 64 * 4
    assert row.bytes_after == report.bytes_after == model["table"].packed.nbytes
    assert row.bytes_after <= 30 * (64 * bits // 8 + 8)
    errors = (weight - model["table"].dequantize_weight()).abs()
    assert row.max_error == report.max_error == float(errors.max())
    assert 0 < row.max_error <= float(steps(weight, bits)[23]) * 0.51


def test_the_report_prints_as_a_table():
    model = nn.ModuleDict(
        {"user": nn.Embedding(2000, 64), "max": nn.EmbeddingBag(9, 8, max_norm=1.0)}
    )
    lines = str(quantize(model)).splitlines()
    assert lines[0] == "quantize: 1 to int8, 1 left; 512,288 to 144,288 bytes (-71.8%)"
    assert lines[3].startswith("user.weight  Embedding     QuantizedEmbedding  2,000     64")
    assert lines[4].startswith("max.weight   EmbeddingBag  left")
    assert str(quantize(nn.Linear(2, 2))) == "quantize: 0 to int8, 0 left"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_are_quantized_and_give_half(dtype):
    model = nn.ModuleList([nn.Embedding(20, 8), nn.EmbeddingBag(20, 8, mode="sum")]).to(dtype)
    wanted = [module.weight.float() for module in model]
    assert not lirank_ext.quantize(model).left
    ids = torch.arange(20)
    for module, weight in zip(model, wanted, strict=True):
        got = module(ids) if module is model[0] else module(ids, ids)
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), weight, atol=0.03, rtol=0)


def test_results_follow_the_dtype_of_the_model():
    hashed = lirank_ext.nn.HashedEmbeddingBag(8, 1000, 10)
    model = nn.ModuleList([nn.Embedding(20, 8), nn.EmbeddingBag(20, 8, mode="sum"), hashed])
    lirank_ext.quantize(model)
    ids = torch.arange(20).view(4, 5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        model.to(dtype)
        assert {module(ids).dtype for module in model} == {dtype}
    again = copy.deepcopy(model.bfloat16())
    assert {module(ids).dtype for module in again} == {torch.bfloat16}
    assert not [name for name in model.state_dict() if "_result" in name]


def test_a_dequantized_module_trains_again():
    plain = nn.Embedding(20, 8, padding_idx=3)
    back = lirank_ext.nn.QuantizedEmbedding.from_float(plain).dequantize()
    assert back.padding_idx == 3 and back.weight.requires_grad
    back(torch.tensor([3, 4])).sum().backward()
    assert not back.weight.grad[3].any() and back.weight.grad[4].all()
    bag = lirank_ext.nn.QuantizedEmbeddingBag.from_float(nn.EmbeddingBag(20, 8)).dequantize()
    assert bag.weight.requires_grad


# ---- every option of nn.EmbeddingBag -------------------------------------------------------------


def given(kind):
    """Ids among 20 rows, of which 3 is padding, and what tells the bags apart."""
    ids = torch.tensor([3, 7, 7, 3, 19, 4, 3, 3])
    if kind == "matrix":
        return (ids.view(4, 2),)
    if kind == "last":
        return ids, torch.tensor([0, 3, 3, 6, 8])
    return ids, torch.tensor([0, 3, 3, 6])


@pytest.mark.parametrize("kind", ["matrix", "offsets", "last"])
@pytest.mark.parametrize("padding", [None, 3, -17])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_with_padding_and_of_every_mode(mode, padding, kind):
    last = kind == "last"
    bag = nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding, include_last_offset=last)
    model = nn.Sequential(bag)
    report = quantize(model)
    assert not report.left and type(model[0]) is QuantizedEmbeddingBag
    twin = model[0].dequantize()
    assert (twin.mode, twin.padding_idx, twin.include_last_offset) == (mode, bag.padding_idx, last)
    for dtype in (torch.int64, torch.int32):
        args = tuple(t.to(dtype) for t in given(kind))
        torch.testing.assert_close(model[0](*args), twin(*args), rtol=1e-5, atol=1e-6)
    if mode == "sum":
        weights = torch.rand(given(kind)[0].shape)
        args = (*given(kind), None)[:2]
        found = model[0](*args, per_sample_weights=weights)
        torch.testing.assert_close(found, twin(*args, per_sample_weights=weights))
    empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(3 + last, dtype=torch.int64))
    assert torch.equal(model[0](*empty), torch.zeros(3, 8))


def test_weights_of_a_mean_are_refused_with_the_way_out():
    ids, offsets = given("offsets")
    for module in (
        QuantizedEmbeddingBag.from_float(nn.EmbeddingBag(20, 8, mode="mean")),
        HashedEmbeddingBag(8, 1000, 10, mode="mean"),
        HashedEmbeddingBag(8, 1000, 10, mode="mean").quantize(),
    ):
        with pytest.raises(ValueError, match="for a mean, divide them by their sum in each bag"):
            module(ids, offsets, torch.rand(8))


def test_collections_name_the_bag_that_they_do_not_take():
    kind = lirank_ext.nn.QuantizedEmbeddingBagCollection
    for options in ({"mode": "max"}, {"mode": "sum", "padding_idx": 0}):
        with pytest.raises(ValueError, match="'a': wanted mode 'sum' or 'mean' and no padding_idx"):
            kind.from_float({"a": nn.EmbeddingBag(20, 8, **options)})


def test_code_of_the_model_reads_the_weight_of_a_quantized_table():
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.Embedding(20, 8)

        def forward(self, x):
            return x @ self.items.weight.T

    model, x = Scorer(), torch.randn(3, 8)
    before = model(x)
    step = (model.items.weight.amax(1) - model.items.weight.amin(1)) / 255
    quantize(model)
    # No value of a row is off by more than half of its step.
    assert (model(x) - before).abs().le(x.abs().sum(1)[:, None] * step * 0.501).all()
    torch.testing.assert_close(model(x), x @ model.items(torch.arange(20)).T)
    torch.testing.assert_close(model.items.weight, model.items(torch.arange(20)))
    assert model.bfloat16().items.weight.dtype == torch.bfloat16
