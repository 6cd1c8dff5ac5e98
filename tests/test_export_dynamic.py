"""Modules and models through torch.export with any number of rows, one and none of ids included."""

from __future__ import annotations

import pytest
import torch
from rankers import PRESETS, make_features, small

from lirank_ext import hash_strings, nn, quantize
from lirank_ext.models import LiRank

ANY = {0: torch.export.Dim.DYNAMIC}
# Rows, and ids of all rows together. Programs are recorded with 4 bags of 11 ids.
SIZES = [(1, 5), (3, 0), (1, 0), (4096, 9000)]


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def bags(rows, ids, tables=1, last=False):
    """ids of (0, 50) and ragged offsets."""
    generator = torch.Generator().manual_seed(rows + ids)
    cuts = torch.randint(0, ids + 1, (rows * tables - 1,), generator=generator).sort()[0]
    ends = [torch.tensor([ids])] if last else []
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts, *ends])
    return torch.randint(0, 50, (ids,), generator=generator), offsets


def rows_of(*widths):
    """A function from the number of rows to inputs of these widths."""

    def make(rows, ids):
        generator = torch.Generator().manual_seed(rows)
        return tuple(torch.randn((rows, w) if w else (rows,), generator=generator) for w in widths)

    return make


def histories(rows, ids):
    items, actions, candidate = rows_of(7 * 6, 7 * 2, 6)(rows, ids)
    lengths = torch.arange(rows) % 8
    return items.view(rows, 7, 6), actions.view(rows, 7, 2), candidate, lengths


def popular():
    effect = nn.RandomEffect()
    effect.fit(torch.zeros(40), torch.arange(40) % 7, (torch.arange(40) % 2).float())
    return effect


def looked_up(rows, ids):
    return (torch.arange(-3, rows - 3),)


class Fallback(torch.nn.Module):
    """StaticVocabulary.lookup is what a model calls."""

    def __init__(self):
        super().__init__()
        self.vocabulary = nn.StaticVocabulary.build(torch.arange(0, 100, 7))

    def forward(self, ids):
        return self.vocabulary.lookup(ids)


class Strings(torch.nn.Module):
    def forward(self, data, offsets):
        return hash_strings((data, offsets))


def strings(rows, ids):
    ids, offsets = bags(rows, ids, last=True)
    return ids.to(torch.uint8), offsets


def int8_bag(**options):
    return nn.QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(50, 8, **options))


def ended(rows, ids):
    return bags(rows, ids, last=True)


NET = {"dim": 20, "rank": 4, "attention_rank": 6, "token_dim": 2}
FLOAT = {k: torch.nn.EmbeddingBag(50, d, mode="sum") for k, d in (("a", 8), ("b", 12))}
HEAD = {"input_dim": 6, "num_tasks": 2}
MODULES = {
    "low rank": (lambda: nn.LowRankCross(16, 4), rows_of(16, 16)),
    "attention": (lambda: nn.AttentionCross(16, 4, learn_temperature=True), rows_of(16, 16)),
    "net": (lambda: nn.ResidualCrossNet(**NET), rows_of(20)),
    "net, learned": (
        lambda: nn.ResidualCrossNet(**NET, learn_temperature=True, merge="concat"),
        rows_of(20),
    ),
    "low rank net": (lambda: nn.LowRankCrossNet(20, 4), rows_of(20)),
    "full rank net": (lambda: nn.FullRankCrossNet(20), rows_of(20)),
    "mixture net": (lambda: nn.MixtureCrossNet(20, 4), rows_of(20)),
    "gated mlp": (lambda: nn.GatedMLP([20, 8, 3], batch_norm=True), rows_of(20)),
    "hashed": (lambda: nn.HashedEmbeddingBag(8, 1000, 10), bags),
    "hashed, int8": (lambda: nn.HashedEmbeddingBag(8, 1000, 10).quantize(), bags),
    "int8": (
        lambda: nn.QuantizedEmbedding.from_float(torch.nn.Embedding(50, 8)),
        lambda rows, ids: bags(rows, ids)[:1],
    ),
    "int4 bag": (lambda: nn.QuantizedEmbeddingBag.from_float(FLOAT["a"], 4), bags),
    "int8 bag, last offset": (lambda: int8_bag(mode="sum", include_last_offset=True), ended),
    "int8 bag, max": (lambda: int8_bag(mode="max", padding_idx=7), bags),
    "int8 bag, padded": (lambda: int8_bag(mode="mean", padding_idx=7), bags),
    "hashed, last offset": (
        lambda: nn.HashedEmbeddingBag(8, 1000, 10, include_last_offset=True),
        ended,
    ),
    "hashed, int8, last offset": (
        lambda: nn.HashedEmbeddingBag(8, 1000, 10, include_last_offset=True).quantize(),
        ended,
    ),
    "strings": (Strings, strings),
    "int8 bags": (
        lambda: nn.QuantizedEmbeddingBagCollection.from_float(FLOAT),
        lambda rows, ids: bags(rows, ids, 2, last=True),
    ),
    "hard shared": (lambda: nn.HardShared(**HEAD), rows_of(6)),
    "towers": (lambda: nn.GroupedTowers(6, [[1], [0, 2]]), rows_of(6)),
    "mmoe": (lambda: nn.MMoE(**HEAD), rows_of(6)),
    "ple": (lambda: nn.PLE(**HEAD), rows_of(6)),
    "history": (lambda: nn.HistoryEncoder(6, 2, 6), histories),
    "calibration": (lambda: nn.IsotonicCalibration(-4, 4, 0.5), rows_of(0)),
    "calibration, features": (lambda: nn.IsotonicCalibration(-4, 4, 0.5, 3), rows_of(0, 3)),
    "numeric": (lambda: nn.NumericBatchNorm(5, log=True), rows_of(5)),
    "posterior": (lambda: nn.NeuralLinear(5, 2), rows_of(5)),
    "random effect": (popular, lambda rows, ids: (torch.randn(rows), torch.arange(rows))),
    "random effect, none": (
        nn.RandomEffect,
        lambda rows, ids: (torch.randn(rows), torch.arange(rows)),
    ),
    "vocabulary": (Fallback, looked_up),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules_export_for_any_number_of_rows(name, strict):
    make, inputs = MODULES[name]
    module = make().eval()
    given = inputs(4, 11)
    shapes = tuple(ANY for _ in given)
    program = torch.export.export(module, given, dynamic_shapes=shapes, strict=strict).module()
    for size in SIZES:
        given = inputs(*size)
        assert torch.equal(program(*given), module(*given))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_of_largest_values_refuses_offsets_that_fall(compiled):
    module, (ids, offsets) = int8_bag(mode="max"), bags(4, 11)
    if compiled:
        run = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    else:
        run = torch.export.export(module, (ids, offsets), dynamic_shapes=(ANY, ANY)).module()
    assert torch.equal(run(ids, offsets), module(ids, offsets))
    for wrong in (offsets.flip(0), offsets + 1, offsets + 20):
        with pytest.raises(RuntimeError, match="argument 'offsets': wanted 0 first, no decrease"):
            run(ids, wrong)


@pytest.mark.parametrize("traced", [3, 8])
def test_histories_export_for_any_number_of_steps(traced):
    encoder = nn.HistoryEncoder(6, 2, 6, last=5, max_len=20, width=16, positions=True).eval()

    def inputs(steps, rows=3):
        items, actions, candidate = rows_of(steps * 6, steps * 2, 6)(rows, 0)
        lengths = torch.arange(rows) * steps // 2
        return items.view(rows, steps, 6), actions.view(rows, steps, 2), candidate, lengths

    both = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = (both, both, ANY, ANY)
    with torch.no_grad():
        program = torch.export.export(encoder, inputs(traced), dynamic_shapes=shapes).module()
        for steps in (1, 2, 4, 5, 6, 19):
            for rows in (1, 4):
                given = inputs(steps, rows)
                torch.testing.assert_close(program(*given), encoder(*given))


def features_of(config, rows, ids):
    made = make_features(config, rows)
    if not ids:
        for key, value in made.items():
            if key.startswith("ids/"):
                made[key] = value[:0]
            if key.startswith("offsets/"):
                made[key] = torch.zeros_like(value)
    return made


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_export_for_any_number_of_rows(name, strict):
    config = small(name)
    model = LiRank(config).eval()
    if strict == (name == "jobs"):
        quantize(model)
    features = features_of(config, 4, 11)
    shapes = ({key: ANY for key in features},)
    with torch.no_grad():
        exported = torch.export.export(model, (features,), dynamic_shapes=shapes, strict=strict)
        for size in SIZES:
            given = features_of(config, *size)
            assert torch.equal(exported.module()(given), model(given))
        wrong = features_of(config, 4, 11)
        table = next(key for key in wrong if key.startswith("offsets/"))
        for bags in (wrong[table][:-1], torch.cat([wrong[table], wrong[table][-1:]])):
            with pytest.raises((AssertionError, RuntimeError, IndexError)):
                exported.module()({**wrong, table: bags})
