"""The benchmark of the trainer's quality."""

from __future__ import annotations

import json

import numpy as np
import pytest

for name in ("pandas", "pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

import pandas as pd  # noqa: E402

from lirank_ext.benchmarks import training_speed  # noqa: E402
from lirank_ext.benchmarks.quality import data, neural  # noqa: E402
from lirank_ext.benchmarks.quality.__main__ import OURS, Bench, main, table  # noqa: E402
from lirank_ext.benchmarks.quality.data import Sources, prepare, usage  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Few rows of made-up use of apps."""
    made = usage(users=20, items=60, events=600)
    monkeypatch.setitem(data.SETS, "usage", lambda sources: (made, None))
    return prepare("usage", Sources(), tmp_path)


def test_usage_is_a_third_uses_and_ten_columns_of_ids():
    made = usage(users=30, items=100, events=500)
    labels = made.pop("label")
    assert made.shape == (1500, 10)
    assert labels.mean() == pytest.approx(1 / 3)
    context = ["user", "daytime", "weekday", "city"]
    uses, others = made[labels == 1][context], made[labels == 0][context]
    twice = pd.concat([uses, uses])
    pd.testing.assert_frame_equal(others.reset_index(drop=True), twice.reset_index(drop=True))
    pd.testing.assert_frame_equal(
        made, usage(users=30, items=100, events=500).drop(columns="label")
    )


def test_parts_are_disjoint_and_by_time_where_there_is_one(tmp_path, monkeypatch):
    time = np.random.default_rng(0).permutation(100)
    frame = pd.DataFrame({"x": np.arange(100), "label": 0})
    for times in (None, time):
        monkeypatch.setitem(data.SETS, "adult", lambda _, t=times: (frame, t))
        made = prepare("adult", Sources(), tmp_path)
        parts = {part: made.frame(part)[0]["x"].to_numpy() for part in data.PARTS}
        assert [len(parts[p]) for p in data.PARTS] == [80, 10, 10]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(100))
    assert time[parts["train"]].max() < time[parts["valid"]].min()
    assert time[parts["valid"]].max() < time[parts["test"]].min()


def test_codes_of_unknown_values_are_not_those_of_known_ones(tmp_path, monkeypatch):
    names = ["a"] * 40 + ["b"] * 40 + ["c"] * 20
    frame = pd.DataFrame({"k": names, "x": np.arange(100.0), "label": 0})
    monkeypatch.setitem(data.SETS, "adult", lambda _: (frame, np.arange(100)))
    encoded = neural.encode(prepare("adult", Sources(), tmp_path))
    train, test = encoded.codes["train"], encoded.codes["test"]
    assert set(train[:, 0].tolist()) == {1, 2}
    assert set(test[:, 0].tolist()) == {0}
    assert train[:, 1].min() > 3
    assert len(train[:, 1].unique()) == neural.BINS
    assert int(train.max()) < encoded.size


@pytest.mark.parametrize("model", ["logistic regression", "DCN-V2", "FinalMLP", "LightGBM"])
def test_rivals_learn_and_choose_by_the_validation_rows(small, tmp_path, monkeypatch, model):
    # Such few rows need small batches.
    drawn = neural.draw
    monkeypatch.setattr(neural, "draw", lambda r: {**drawn(r), "batch": 32, "lr": 5e-3, "l2": 0.0})
    if model == "LightGBM":
        pytest.importorskip("lightgbm")
    bench = Bench(small, settings=2, seeds=1, folder=tmp_path)
    found = bench.run(model)
    assert found["runs"][0]["auc"] > 0.6
    assert found["setting"]
    flipped = Bench(small, settings=2, seeds=1, folder=tmp_path)
    flipped.labels["valid"] = 1 - flipped.labels["valid"]
    if model == "logistic regression":
        assert flipped.run(model)["setting"] != found["setting"]


def test_the_table_is_written_and_nothing_runs_twice(small, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--output", str(out), "--sets", "usage", "--models", "logistic regression"]
    options += ["--settings", "1", "--seeds", "1"]
    assert main(options) == 0
    before = json.loads((out / "results.json").read_text())
    assert "logistic regression" in capsys.readouterr().out
    assert main(options) == 0
    assert json.loads((out / "results.json").read_text()) == before
    assert main([*options[:2], "--sets", "ml-1m by time"]) == 2
    assert "--ml-1m" in capsys.readouterr().err
    runs = [{"auc": 0.7, "log_loss": 0.5}, {"auc": 0.8, "log_loss": 0.5}]
    text = table({"a": {OURS: {"runs": runs, "settings": 20}}})
    assert f"| a | {OURS} | 0.7500 ± 0.0500 | 0.5000 ± 0.0000 | defaults | 2 |" in text


def test_training_speed_times_every_stage(capsys):
    assert training_speed.main(["--rows", "300", "--steps", "2", "--columns", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "3 columns, csv",
        "3 columns, parquet",
        "3 columns, plain loop",
    ]
    stages = ("read and hash", "batches", "look-up", "forward", "backward", "dense", "table")
    assert all(stage in line for stage in stages for line in lines[:2])
