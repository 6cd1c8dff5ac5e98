"""The demo, end to end on a few rows, and its parts."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

for package in ("pyarrow", "sklearn", "tqdm", "rich", "matplotlib"):
    pytest.importorskip(package)

from lirank_ext import datasets, demo, hash_strings  # noqa: E402
from lirank_ext.demo import measure, ranker  # noqa: E402


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.delenv("LIRANK_DATA", raising=False)
    monkeypatch.setattr(demo, "REQUESTS", {1: 5, 64: 3, 1024: 2})


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(list(arguments)))


@pytest.fixture(scope="module")
def data():
    """3,000 rows of UCI Adult, their ids hashed."""
    found = datasets.load(rows=3000)
    found.codes = hash_strings(found.vocabulary)[found.codes]
    return found


def test_the_demo_on_adult(tmp_path, capsys):
    assert run("--quick", "--rows", "6000", "--output", str(tmp_path)) == 0
    said = capsys.readouterr()
    for word in ("UCI Adult", "AUC", "observed / expected", "embeddings", "p99 at batch 1024"):
        assert word in said.out
    assert "training" in said.err
    content = json.loads((tmp_path / "demo.json").read_text())
    first, swapped, last = content["readings"]
    assert [r["name"] for r in (first, swapped, last)] == [
        *("plain PyTorch", "swapped", "swapped + int8")
    ]
    assert first["auc"] > 0.87
    assert abs(swapped["auc"] - first["auc"]) < 1e-5
    assert abs(last["auc"] - first["auc"]) < 1e-3
    assert last["embedding_bytes"] <= 0.3 * first["embedding_bytes"]
    assert set(last["latency"]) == {"1", "64", "1024"}
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_swap_and_quantize_reach_every_layer(tmp_path, data):
    import copy

    import lirank_ext

    model = ranker.Ranker(data).eval()
    swapped = copy.deepcopy(model)
    lirank_ext.swap(swapped)
    quantized = copy.deepcopy(swapped)
    lirank_ext.quantize(quantized)
    kinds = {type(module).__name__ for module in quantized.modules()}
    assert not [kind for kind in kinds if kind.startswith("Reference")]
    assert {"QuantizedHashedEmbeddingBag", "ResidualCrossNet", "IsotonicCalibration"} <= kinds
    one, two = (ranker.predict(m, data, data.test) for m in (model, swapped))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert measure.num_bytes(quantized.embedding) < 0.3 * measure.num_bytes(model.embedding)


def test_training_learns_and_keeps_the_best_weights(data):
    torch.manual_seed(0)
    model = ranker.Ranker(data, dim=8, rank=4)
    untrained = ranker._loss(model, data, data.valid)
    best = ranker.train(model, data, epochs=3)
    assert best < untrained - 0.1
    assert ranker._loss(model, data, data.valid) == pytest.approx(best, abs=1e-6)


def test_calibration_starts_as_the_identity_and_mends_a_shifted_model(data):
    torch.manual_seed(0)
    model = ranker.Ranker(data, dim=8, rank=4)
    ranker.train(model, data, epochs=2)
    raw = ranker.predict(model, data, data.valid, calibrated=False)
    torch.testing.assert_close(ranker.predict(model, data, data.valid), raw, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.output.bias += 1.0
    labels = data.labels[data.valid]
    shifted = ranker.predict(model, data, data.valid).sigmoid()
    ranker.calibrate(model, data)
    mended = ranker.predict(model, data, data.valid).sigmoid()
    assert labels.sum() / shifted.sum() < 0.75
    assert abs(labels.sum() / mended.sum() - 1) < 0.05
    assert torch.equal(mended[mended.argsort()], mended[shifted.argsort()]), "order is kept"


def test_reliability_bins_hold_all_rows():
    probabilities, labels = np.array([0.9, 0.1, 0.2, 0.8]), np.array([1.0, 0.0, 1.0, 1.0])
    predicted, observed = measure.reliability(probabilities, labels, bins=2)
    np.testing.assert_allclose(predicted, [0.15, 0.85])
    np.testing.assert_allclose(observed, [0.5, 1.0])


def test_epochs_fall_with_the_rows():
    assert [demo._epochs(rows, False) for rows in (1_000, 400_000, 5_000_000)] == [6, 3, 2]
    assert [demo._epochs(rows, True) for rows in (1_000, 150_000)] == [3, 2]


def test_the_demo_on_a_csv_file(tmp_path, capsys):
    path = tmp_path / "shop.csv"
    lines = ["colour,price,bought"]
    for i in range(400):
        lines.append(f"{('red', 'green')[i % 2]},{i % 11},{int(i % 2 == 0 or i % 11 > 8)}")
    path.write_text("\n".join(lines))
    assert run("--data", str(path), "--label", "bought", "--output", str(tmp_path)) == 0
    assert "shop.csv: bought = 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("a,b\n1,1\n1\n", ("--label", "b"), ":3: 1 fields, where the header has 2"),
        ("a,b\n1,1\n", ("--label", "c"), "no column 'c'"),
        ("", ("--label", "b"), "empty file"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, capsys, text, arguments, said):
    path = tmp_path / "shop.csv"
    path.write_text(text)
    assert run("--data", str(path), *arguments, "--output", str(tmp_path / "out")) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"lirank_ext demo: {path}")
    assert said in message


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert run("--output", str(tmp_path / "out")) == 2
    assert "--output" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert run("--output", str(tmp_path)) == 2
    assert "pip install 'lirank_ext[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["0", "-3", "many"])
def test_a_row_limit_is_a_positive_number(rows, capsys):
    with pytest.raises(SystemExit) as caught:
        run("--rows", rows)
    assert caught.value.code == 2


def test_the_demo_on_movielens(shared_data, tmp_path):
    arguments = ("--data", str(shared_data / "ml-1m"), "--rows", "4000", "--quick")
    assert run(*arguments, "--output", str(tmp_path)) == 0
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["data"]["name"] == "MovieLens"
    assert content["rows"] == {"train": 3200, "valid": 400, "test": 400}
