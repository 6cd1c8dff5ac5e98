"""What a state dict carries: models from meta tensors, and tables that do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from rankers import PRESETS, make_features, small
from test_export_dynamic import MODULES

from lirank_ext import nn, quantize
from lirank_ext.models import LiRank


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


# ---- models that are built without memory ----------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_a_model_from_meta_is_that_of_its_state_dict(name, assign):
    config = small(name)
    model = LiRank(config).eval()
    with torch.device("meta"):
        other = LiRank(config).eval()
    if not assign:
        other.to_empty(device="cpu")
        for buffer in other.buffers():  # memory that is not zero by chance
            buffer.view(torch.uint8).fill_(77)
    other.load_state_dict(model.state_dict(), assign=assign)
    features = make_features(config)
    with torch.no_grad():
        assert torch.equal(other(features), model(features))


def test_constants_are_there_as_soon_as_a_module_has_memory():
    with torch.device("meta"):
        head = nn.GroupedTowers(4, [[2], [0, 1]], tower_dims=())
        norm = nn.NumericBatchNorm(3, log=[1])
    head.to_empty(device="cpu")
    norm.to_empty(device="cpu")
    assert head.column.tolist() == [1, 2, 0]
    assert norm.log.tolist() == [False, True, False]
    assert copy.deepcopy(norm).half().log.dtype == torch.bool


def test_a_state_dict_from_before_a_name_changed_loads():
    config = small("feed")
    model, other = LiRank(config), LiRank(config)
    old = {k.replace("normalize.", "normalise."): v for k, v in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    other.load_state_dict(old)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


# ---- tables say what they are ------------------------------------------------------------------


def bag(rows=100, dim=8, bits=8, mode="mean"):
    return nn.QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(rows, dim, mode=mode), bits)


def hashed(bits=None, **options):
    made = nn.HashedEmbeddingBag(8, **{"num_buckets": 1000, "num_remainders": 10, **options})
    return made if bits is None else made.quantize(bits)


def collection(dims=(8, 8), bits=8, rows=(20, 30), mode="sum"):
    tables = (torch.nn.EmbeddingBag(n, d, mode=mode) for n, d in zip(rows, dims, strict=True))
    return nn.QuantizedEmbeddingBagCollection.from_float(dict(zip("ab", tables, strict=True)), bits)


# Two modules each, whose tensors have equal shapes, and what the error must name.
STRANGERS = {
    "bits and width": (bag(), bag(dim=16, bits=4), "bits 8, dim 8, got bits 4, dim 16"),
    "width in one row size": (bag(dim=57), bag(dim=60), "dim 57, got dim 60"),
    "mode": (bag(), bag(mode="sum"), "mode 'mean', got mode 'sum'"),
    "seed": (hashed(), hashed(seed=1), "seed 0, got seed 1"),
    "buckets": (hashed(), hashed(num_buckets=995), "num_buckets 1000, got num_buckets 995"),
    "packed seed": (hashed(8), hashed(8, seed=1), "seed 0, got seed 1"),
    "packed mode": (hashed(4), hashed(4, mode="mean"), "mode 'sum', got mode 'mean'"),
    "widths of a collection": (
        collection((8, 16)),
        collection((16, 8), rows=(30, 20)),
        r"shapes \[\[20, 8\], \[30, 16\]\], got",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_table_of_another_meaning_is_refused(name):
    mine, other, message = STRANGERS[name]
    mine = torch.nn.Sequential(mine)
    before = copy.deepcopy(mine.state_dict())
    state = torch.nn.Sequential(other).state_dict()
    shapes = ({k: v.shape for k, v in s.items() if "extra" not in k} for s in (before, state))
    if name != "widths of a collection":
        assert next(shapes) == next(shapes)
    with pytest.raises(RuntimeError, match=f"'0': .*argument 'state_dict': wanted .*{message}"):
        mine.load_state_dict(state, strict=False)
    assert all(torch.equal(before[k], v) for k, v in mine.state_dict().items())


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.Tensor.numpy, torch.Tensor.tolist])
def test_a_tag_is_read_whatever_holds_its_bytes(kind):
    state = bag(dim=16, bits=4).state_dict()
    tag = state["_extra_state"]
    state["_extra_state"] = kind(tag) if kind is not torch.nn.Parameter else kind(tag, False)
    with pytest.raises(RuntimeError, match="bits 8, dim 8, got bits 4, dim 16"):
        bag().load_state_dict(state)


def test_a_damaged_tag_is_refused():
    state = bag().state_dict()
    state["_extra_state"] = state["_extra_state"][:-3]
    with pytest.raises((RuntimeError, ValueError), match="the tag of a table is damaged"):
        bag().load_state_dict(state)


@pytest.mark.parametrize("make", [bag, hashed, lambda: hashed(4), collection])
def test_state_dicts_with_and_without_tags_load(make, tmp_path):
    first, second, third = make(), make(), make()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    third.load_state_dict({k: v for k, v in first.state_dict().items() if "extra" not in k})
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)
        assert torch.equal(third.state_dict()[name], tensor)


def test_tags_are_tensors_for_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    first, second = hashed(8), hashed(8)
    safetensors.save_file(first.state_dict(), tmp_path / "table.safetensors")
    tensors = safetensors.load_file(tmp_path / "table.safetensors")
    second.load_state_dict(tensors)
    assert torch.equal(first.quotient_b, second.quotient_b)
    with pytest.raises(RuntimeError, match="wanted a table with seed 3, got seed 0"):
        hashed(8, seed=3).load_state_dict(tensors)


# ---- quantized modules by their sizes ----------------------------------------------------------

SIZED = {
    "embedding": (
        lambda: nn.QuantizedEmbedding.from_float(torch.nn.Embedding(50, 12), 4),
        lambda **o: nn.QuantizedEmbedding.empty(50, 12, 4, **o),
    ),
    "bag": (
        lambda: bag(mode="sum"),
        lambda **o: nn.QuantizedEmbeddingBag.empty(100, 8, mode="sum", **o),
    ),
    "hashed": (
        lambda: hashed(4, seed=5),
        lambda **o: nn.QuantizedHashedEmbeddingBag.empty(8, 1000, 10, 4, seed=5, **o),
    ),
    "collection": (
        lambda: collection((8, 12)),
        lambda **o: nn.QuantizedEmbeddingBagCollection.empty({"a": (20, 8), "b": (30, 12)}, **o),
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", SIZED)
def test_quantized_modules_are_made_by_size_and_loaded(name, device):
    full, empty = SIZED[name]
    full, made = full(), empty(device=device)
    made.load_state_dict(full.state_dict(), assign=device == "meta")
    offsets = torch.tensor([0, 3, 3, 5, 6])
    ids = torch.tensor([1, 2, 3, 4, 19, 0])
    args = (ids,) if name == "embedding" else (ids, offsets)
    assert torch.equal(made(*args), full(*args))
    assert full(*args).any()
    assert empty(dtype=torch.float16)(*args).dtype == torch.float16


@pytest.mark.parametrize("sizes", [(0, 8, 8), (5, 0, 8), (5, 8, 3)])
def test_sizes_that_no_table_has_are_refused(sizes):
    with pytest.raises(ValueError, match=r"a quantized table: argument '.*': wanted"):
        nn.QuantizedEmbedding.empty(*sizes)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_loads_without_float_tables(bits):
    config = small("feed")
    model = LiRank(config).eval()
    quantize(model, bits)
    with torch.device("meta"):
        other = LiRank(config).eval()
    report = quantize(other, bits)
    assert all(row.bytes_after < row.bytes_before for row in report.replaced) and report.replaced
    other.load_state_dict(model.state_dict(), assign=True)
    features = make_features(config)
    with torch.no_grad():
        assert torch.equal(other(features), model(features))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_written_by_safetensors(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module = MODULES[name][0]()
    if isinstance(module, nn.NeuralLinear):
        module.update(torch.randn(20, 5), torch.randn(20, 2))
    safetensors.save_file(module.state_dict(), tmp_path / "module.safetensors")
    state = safetensors.load_file(tmp_path / "module.safetensors")
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


def test_a_vocabulary_is_built_where_its_model_is_on_meta():
    wanted = nn.StaticVocabulary.build(["a", "b", "c"])
    with torch.device("meta"):
        made = nn.StaticVocabulary.build(["a", "b", "c"])
        nothing = torch.arange(3)
    assert torch.equal(made.table, wanted.table)
    with pytest.raises(ValueError, match="wanted ids with data, got a tensor on the meta device"):
        nn.StaticVocabulary.build(nothing)
