from __future__ import annotations

import json

import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import write_csv  # noqa: E402

import lirank_ext  # noqa: E402
from lirank_ext.__main__ import main  # noqa: E402
from lirank_ext.training.session import load_model  # noqa: E402
from lirank_ext.training.trainer import CHECKPOINT  # noqa: E402

SMALL = ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]"]
SMALL += ["--set", "model.cross.rank=4", "--set", "training.batch_size=64", "--epochs", "2"]
SMALL += ["--set", "training.tune=off", "--set", "training.fisher_rows=20"]


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def data(tmp_path):
    return write_csv(tmp_path / "clicks.csv")


def run(*args) -> int:
    return main([str(a) for a in args])


def refused(capsys, *args) -> str:
    """The sentence on stderr of a command that ends with exit code 2."""
    assert run(*args) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("preset", [None, "feed", "jobs", "ads"])
def test_train_evaluate_predict_calibrate(data, tmp_path, capsys, preset):
    out = tmp_path / "model"
    options = [] if preset is None else ["--preset", preset]
    assert run("train", data, "--label", "click", "--output", out, *SMALL, *options) == 0
    assert "AUC" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] > 10
    assert run("evaluate", out, data, "--json", tmp_path / "e.json") == 0
    metrics = json.loads((tmp_path / "e.json").read_text())["click"]
    assert metrics["rows"] == 600
    assert metrics["auc"] > 0.5
    assert run("predict", out, data, "--output", tmp_path / "p.csv") == 0
    lines = (tmp_path / "p.csv").read_text().split()
    assert lines[0] == "click"
    assert len(lines) == 601
    assert all(0 < float(p) < 1 for p in lines[1:])
    if preset != "jobs":
        assert run("calibrate", out, data, "--output", tmp_path / "c") == 0
        assert load_model(tmp_path / "c")[0].calibration is not None
    else:
        assert "has no calibration" in refused(capsys, "calibrate", out, data)


def test_trained_model_swaps_quantizes_and_serves(data, tmp_path):
    out = tmp_path / "model"
    assert run("train", data, "--label", "click", "--output", out, *SMALL) == 0
    model, config = load_model(out)
    from lirank_ext.data.broken import Broken
    from lirank_ext.training.session import open_loader

    batch = next(iter(open_loader(config, [data], Broken())))
    with torch.inference_mode():
        before = model.predict(batch.features)
        lirank_ext.swap(model)
        torch.testing.assert_close(model.predict(batch.features), before)
        lirank_ext.quantize(model)
        after = model.predict(batch.features)
    # Probabilities: int8 rows are off by up to 1/510 of their range each.
    torch.testing.assert_close(after, before, atol=0.02, rtol=0)
    assert not torch.equal(after, before)


def test_predict_needs_no_labels(data, tmp_path, capsys):
    out = tmp_path / "model"
    assert run("train", data, "--label", "click", "--output", out, *SMALL) == 0
    rows = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()]
    (tmp_path / "new.csv").write_text("\n".join(rows[:4]) + "\n")
    capsys.readouterr()
    assert run("predict", out, tmp_path / "new.csv") == 0
    assert len(capsys.readouterr().out.split()) == 4


def test_bad_input_is_one_sentence(data, tmp_path, capsys):
    out = tmp_path / "o"
    train = ("train", data, "--output", out, *SMALL)
    assert "did you mean 'click'" in refused(capsys, *train, "--label", "clik")
    assert "no such file" in refused(capsys, "train", tmp_path / "no.csv", "--label", "click")
    text = refused(capsys, *train, "--label", "click", "--set", "model.cros.rank=3")
    assert "did you mean 'cross'" in text
    assert "KEY=VALUE" in refused(capsys, *train, "--label", "click", "--set", "x")
    assert "where 0 or 1 was wanted" in refused(capsys, *train, "--label", "age")
    (tmp_path / "c.yaml").write_text("trainin: {}\n")
    text = refused(capsys, *train, "--label", "click", "--config", tmp_path / "c.yaml")
    assert "c.yaml: unknown key 'trainin' (did you mean 'training'?)" in text
    assert "no such file" in refused(capsys, "evaluate", tmp_path, data)
    assert "--resume" in refused(capsys, *train, "--label", "click", "--resume")
    assert "did you mean 'gate'" in refused(capsys, "ablate", data, "--switch", "gat")


def test_a_run_is_not_overwritten_by_accident(data, tmp_path, capsys):
    out = tmp_path / "model"
    train = ("train", data, "--label", "click", "--output", out, *SMALL)
    assert run(*train) == 0
    assert "--resume to go on, or --overwrite" in refused(capsys, *train)
    assert run(*train, "--overwrite") == 0
    file = out / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in refused(capsys, *train, "--resume")


def test_skipped_rows_are_reported(data, tmp_path, capsys):
    data.write_text(data.read_text() + "u1,i1,old,,1\n")
    train = ("train", data, "--label", "click", "--output", tmp_path / "o", *SMALL)
    assert "clicks.csv:602: column 'age' holds 'old'" in refused(capsys, *train)
    assert run(*train, "--skip-bad-rows") == 0
    assert "1 broken row was skipped" in capsys.readouterr().err


def test_ablate_keeps_its_results(data, tmp_path, capsys):
    kept = tmp_path / "a.json"
    ablate = ("ablate", data, "--label", "click", *SMALL, "--seeds", "2", "--output", kept)
    assert run(*ablate, "--switch", "cross", "--switch", "training.lr=0.1") == 0
    first = capsys.readouterr().out
    assert "without cross" in first
    assert "training.lr=0.1" in first
    results = json.loads(kept.read_text())["results"]
    assert len(results) == 6
    results["whole/0"]["auc"] = 0.125  # shown again, so not trained again
    content = json.loads(kept.read_text())
    content["results"] = results
    kept.write_text(json.dumps(content))
    assert run(*ablate) == 0
    table = capsys.readouterr().out
    mean = (0.125 + results["whole/1"]["auc"]) / 2
    assert f"{mean:.4f}" in table
    text = kept.read_text()
    assert "results of another configuration" in refused(
        capsys, *ablate, "--set", "training.lr=0.2"
    )
    other = tmp_path / "other.csv"
    other.write_text(data.read_text())
    assert "on other data" in refused(capsys, "ablate", other, *ablate[2:])
    assert kept.read_text() == text
    kept.write_text("[]")
    assert "no results of an ablation" in refused(capsys, *ablate)
