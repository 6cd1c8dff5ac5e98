"""One AOTInductor package with every op that serves, compiled once and run at several sizes.

It takes a minute or two: the package holds all ops, so that one compilation tries them all.
``python tests/aoti_presets.py`` compiles every preset, float and quantized.
"""

from __future__ import annotations

import shutil
from itertools import islice

import pytest
import torch
from conftest import needs_library
from rankers import make_features, small
from test_export_dynamic import SIZES, bags, popular

import lirank_ext
from lirank_ext import nn
from lirank_ext.models import LiRank

ANY = {0: torch.export.Dim.DYNAMIC}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a compiler")


class Everything(torch.nn.Module):
    """Float and quantized tables of every kind, both nets, a calibration and a random effect."""

    def __init__(self):
        super().__init__()
        floats = {k: torch.nn.EmbeddingBag(50, 4, mode="sum") for k in "ab"}
        self.hashed = nn.HashedEmbeddingBag(4, 1000, 10)
        self.packed_hashed = nn.HashedEmbeddingBag(4, 1000, 10, mode="mean").quantize(4)
        self.packed = nn.QuantizedEmbeddingBag.from_float(floats["a"])
        self.largest = nn.QuantizedEmbeddingBag.from_float(
            torch.nn.EmbeddingBag(50, 4, mode="max", padding_idx=7)
        )
        self.plain = nn.QuantizedEmbedding.from_float(torch.nn.Embedding(50, 4))
        self.net = nn.ResidualCrossNet(20, 4)
        self.learned = nn.ResidualCrossNet(20, 4, learn_temperature=True, merge="concat")
        self.layer = nn.AttentionCross(20, 4, token_dim=2)
        self.last = torch.nn.Linear(20 * 4, 1)
        self.effect = popular()
        self.calibration = nn.IsotonicCalibration(-4, 4, 0.5)

    def forward(self, ids, offsets, seen, popular):
        tables = (self.hashed, self.packed_hashed, self.packed, self.largest)
        pooled = [table(ids, offsets) for table in tables]
        x = torch.cat([*pooled, self.plain(seen)], dim=1)
        parts = [self.net(x), self.learned(x), self.layer(x, x)]
        logit = self.effect(self.last(torch.cat(parts, dim=1)).squeeze(1), popular)
        return self.calibration(logit)


def inputs(rows, ids):
    ids, offsets = bags(rows, ids)
    return ids, offsets, torch.arange(rows) % 50, torch.arange(rows)


def package(model, args, shapes, path):
    with torch.no_grad():
        program = torch.export.export(model, args, dynamic_shapes=shapes)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("_train" in name or "backward" in name for name in names)
    return torch._inductor.aoti_load_package(
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    )


@pytest.mark.filterwarnings("ignore")
def test_a_package_with_every_op_equals_eager(tmp_path, threads):
    threads(1)
    torch.manual_seed(0)
    model = Everything().eval()
    args = inputs(4, 11)
    run = package(model, args, (ANY,) * 4, tmp_path / "all.pt2")
    for size in SIZES:
        with torch.no_grad():
            wanted = model(*inputs(*size))
        torch.testing.assert_close(run(*inputs(*size)), wanted, rtol=1e-5, atol=1e-5)
    ids, offsets, *rest = inputs(4, 11)
    with pytest.raises(RuntimeError, match="argument 'offsets': wanted"):
        run(ids, offsets.flip(0), *rest)


@pytest.mark.filterwarnings("ignore")
def test_a_package_of_a_quantized_preset_equals_eager(tmp_path, threads):
    threads(1)
    config = small("jobs")
    model = LiRank(config).eval()
    lirank_ext.quantize(model)
    features = make_features(config, 4)
    shapes = ({key: ANY for key in features},)
    run = package(model, (features,), shapes, tmp_path / "jobs.pt2")
    for rows in (1, 9):
        given = make_features(config, rows)
        with torch.no_grad():
            torch.testing.assert_close(run(given), model(given), rtol=1e-5, atol=1e-5)


@needs_library  # export writes it beside the package
@pytest.mark.filterwarnings("ignore")
def test_the_demo_ranker_swapped_and_quantized(tmp_path, threads):
    for name in ("pyarrow", "sklearn", "safetensors"):
        pytest.importorskip(name)
    from lirank_ext.conversion.swap import use_references
    from lirank_ext.demo.prepare import prepare
    from lirank_ext.demo.ranker import configuration
    from lirank_ext.training.export import PACKAGE, difference, export_model, load_package
    from lirank_ext.training.settings import Config, Settings

    threads(1)
    data = prepare(rows=600)
    model = LiRank(configuration(data, dim=24, rank=8)).eval()
    assert use_references(model) and lirank_ext.swap(model).replaced
    assert lirank_ext.quantize(model).replaced
    written = export_model(model, Config(model.config, Settings()), tmp_path / "demo")
    run = load_package(written.folder / PACKAGE, [i["name"] for i in written.manifest["inputs"]])
    for size in (1, 64):
        for batch in islice(data.memory(data.test, size), 2):
            assert difference(run, model, batch.features) <= 1e-5


def test_a_program_recorded_with_gradients_serves_with_the_same_ops():
    model = Everything().eval()
    program = torch.export.export(model, inputs(4, 11), dynamic_shapes=(ANY,) * 4)
    names = {str(node.target) for node in program.graph.nodes}
    assert "lirank.residual_cross_net.default" in names
    assert not any("_train" in name for name in names)
    trained = program.module()
    given = inputs(5, 9)
    trained(*given).sum().backward()
    model(*given).sum().backward()
    for (name, p), q in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad.to_dense(), q.grad.to_dense(), msg=name)
