"""``decompositions()``: every op in plain aten equals the op, in exported programs and in ONNX."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch
from rankers import PRESETS, make_features, small

import lirank_ext
from lirank_ext import nn
from lirank_ext.library.op import OPS
from lirank_ext.models import LiRank
from lirank_ext.nn.reference_isotonic import ReferenceIsotonicCalibration
from lirank_ext.verify import check_case
from lirank_ext.verify.cases import all_cases

TABLE = lirank_ext.decompositions()
NAMES = {overload.name().split("::")[1] for overload in TABLE}
DATA_DEPENDENT = {"hash_strings", "vocabulary_lookup", "quantized_embedding_bags"}
ANY = {0: torch.export.Dim.DYNAMIC}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def test_every_op_that_users_call_has_one():
    public = {name for name, op in OPS.items() if not op.internal}
    assert public - NAMES == DATA_DEPENDENT


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_agrees_with_the_float64_reference(name):
    decomposed, checked = TABLE[OPS[name].overload], 0
    for case in all_cases(name):
        if case.raises is None and not case.big:
            outcome = check_case(case, decomposed)  # its gradients too
            assert outcome.passed, f"{case.label}: {outcome.problem}"
            checked += 1
    assert checked or OPS[name].internal


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_become_plain_aten(name, quantized):
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config, 4)
    if quantized:
        lirank_ext.quantize(model)
    shapes = ({key: ANY for key in features},)
    with torch.no_grad():
        program = torch.export.export(model, (features,), dynamic_shapes=shapes)
        plain = program.run_decompositions(TABLE)
        spaces = {
            node.target.namespace
            for node in plain.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
        }
        assert spaces == {"aten"}
        for rows in (1, 9):
            given = make_features(config, rows)
            # The same float32 products and sums in another order, through a dozen layers.
            torch.testing.assert_close(plain.module()(given), model(given), rtol=1e-4, atol=1e-4)


class Ranker(torch.nn.Module):
    """Hashed ids and numbers, crossed and calibrated."""

    def __init__(self, quantized):
        super().__init__()
        bag = nn.HashedEmbeddingBag(8, 1000, 10, mode="mean")
        self.bag = bag.quantize() if quantized else bag
        self.net = nn.ResidualCrossNet(12, 4)
        self.last = torch.nn.Linear(12, 1)
        self.calibration = nn.IsotonicCalibration(-4, 4, 0.5)

    def forward(self, ids, offsets, numbers):
        x = torch.cat([self.bag(ids, offsets), numbers], dim=1)
        return self.calibration(self.last(self.net(x)).squeeze(1))


@pytest.mark.parametrize("quantized", [False, True])
def test_onnxruntime_gives_the_same(quantized, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    torch.manual_seed(0)
    model = Ranker(quantized).eval()

    def inputs(rows):
        generator = torch.Generator().manual_seed(rows)
        counts = torch.randint(0, 4, (rows,), generator=generator)
        ids = torch.randint(-(2**62), 2**62, (int(counts.sum()),), generator=generator)
        return ids, counts.cumsum(0) - counts, torch.randn(rows, 4, generator=generator)

    with torch.no_grad():
        program = torch.export.export(model, inputs(4), dynamic_shapes=(ANY, ANY, ANY))
        program = program.run_decompositions(TABLE)
    path = tmp_path / "ranker.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path)
    for rows in (4, 1, 30):
        given = inputs(rows)
        names = [i.name for i in session.get_inputs()]
        feed = dict(zip(names, (t.numpy() for t in given), strict=True))
        (found,) = session.run(None, feed)
        with torch.no_grad():
            wanted = model(*given)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_packing_in_an_exported_program_becomes_plain_aten(bits):
    class Pack(torch.nn.Module):
        def forward(self, codes, scale, mid):
            return lirank_ext.pack_rows(codes, scale, mid, bits)

    rows = lirank_ext.quantize_rows(torch.randn(5, 6), bits)
    program = torch.export.export(Pack(), rows).run_decompositions(TABLE)
    assert torch.equal(program.module()(*rows), Pack()(*rows))


def test_a_reference_calibration_converts_by_itself():
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    plain = ReferenceIsotonicCalibration(-4, 4, 0.5).eval()
    assert torch.onnx.export(plain, (torch.randn(5),), dynamo=True, verbose=False) is not None


@pytest.mark.skipif(
    lirank_ext.build_info()["cpu"].startswith("references"), reason="nothing is compiled here"
)
def test_the_library_loads_without_this_package():
    path = lirank_ext.library_path()
    assert ctypes.CDLL(str(path))
    code = f"import torch; torch.ops.load_library({str(path)!r}); "
    code += "x = torch.ones(2, 3); w = torch.ones(1, 3); "
    code += "print(torch.ops.lirank.low_rank_cross(x, x, w, w.T.contiguous(), None).sum().item())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(out.stdout) == 2 * 3 * (3 + 1)
