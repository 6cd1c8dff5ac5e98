"""The demo, end to end on a few rows, and its parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

for package in ("pyarrow", "sklearn", "tqdm", "rich", "matplotlib"):
    pytest.importorskip(package)

from lirank_ext import _progress, demo  # noqa: E402
from lirank_ext.cli import main  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.demo import measure, ranker  # noqa: E402
from lirank_ext.demo.prepare import prepare  # noqa: E402
from lirank_ext.library import packages  # noqa: E402
from lirank_ext.training.metrics import evaluate  # noqa: E402

USERS = "1::F::1::10::48067\n2::M::56::16::70072-1234\n3::M::25::15::55117\n"
MOVIES = "10::Alien (1979)::Action|Horror\n20::Café (1995)::Drama\n30::No year::Comedy\n"


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.delenv("LIRANK_DATA", raising=False)
    monkeypatch.setattr(demo, "REQUESTS", {1: 5, 64: 3, 1024: 2})


def run(*arguments: str) -> int:
    return main(["demo", *arguments])


@pytest.fixture(scope="module")
def data():
    """3,000 rows of UCI Adult."""
    return prepare(rows=3000)


@pytest.fixture
def movielens(tmp_path):
    """A MovieLens-1M folder with 120 ratings, written user by user and not by time."""
    generator, folder = np.random.default_rng(0), tmp_path / "ml"
    seconds = 1000 + generator.permutation(120)
    lines = [
        f"{i // 40 + 1}::{(10, 20, 30)[i % 3]}::{generator.integers(1, 6)}::{seconds[i]}\n"
        for i in range(120)
    ]
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join(lines), encoding="latin-1")
    (folder / "users.dat").write_text(USERS, encoding="latin-1")
    (folder / "movies.dat").write_text(MOVIES, encoding="latin-1")
    return folder


@pytest.fixture
def table(tmp_path):
    """Write a CSV file of 200 rows, with one more column where it is given."""

    def write(name: str = "", values=None):
        lines = ["colour,price,bought" + (f",{name}" if name else "")]
        for i in range(200):
            extra = f",{values[i]}" if name else ""
            lines.append(f"{('red', 'green')[i % 2]},{i * 0.5},{i // 2 % 2}{extra}")
        path = tmp_path / "shop.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


# ---- what it trains on ---------------------------------------------------------------------


def test_the_parts_hold_every_row_once(table):
    data = prepare(table(), "bought")
    parts = np.concatenate([data.train, data.valid, data.test])
    assert sorted(parts) == list(range(200))
    assert [len(data.valid), len(data.test)] == [20, 20]
    assert data.labels(data.test).mean() == 0.5  # drawn within each class


def test_the_seed_draws_the_split(table):
    path = table()
    one, same, other = (prepare(path, "bought", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)


def test_rows_limit_what_is_used(table):
    data = prepare(table(), "bought", rows=100)
    assert len(data.train) + len(data.valid) + len(data.test) == 100


@pytest.mark.parametrize(
    "values", [range(0, -200, -1), [f"{2099 - i}-02-28 10:00" for i in range(200)]]
)
def test_a_time_column_orders_the_split(table, values):
    data = prepare(table("day", list(values)), "bought", time="day")
    assert sorted(data.test) == list(range(20))
    assert "day" not in data.schema.columns
    assert sorted(prepare(table("day", values), "bought", time="day", rows=100).test) == [
        *range(10)
    ]


@pytest.mark.parametrize(
    ("time", "said"),
    [("", ":6: the time 'day' is missing"), ("noon", ":6: the time 'day' holds 'noon'")],
)
def test_a_broken_time_is_named(table, time, said):
    with pytest.raises(DataError, match=said):
        prepare(table("day", [time if i == 4 else i for i in range(200)]), "bought", time="day")


def test_too_few_rows_of_a_class_are_refused(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text("\n".join(["colour,bought", *["red,1"] * 50, *["green,0"] * 5]))
    with pytest.raises(DataError, match=r"shop\.csv: 50 of 55 rows have label 1"):
        prepare(path, "bought")


def test_movielens_is_split_by_time(movielens, tmp_path):
    data = prepare(movielens, folder=tmp_path)
    assert (data.name, data.task) == ("MovieLens", "rating >= 4")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [96, 12, 12]
    parts = np.concatenate([data.train, data.valid, data.test])
    assert np.array_equal(parts, np.arange(120))


def test_movielens_of_one_class_is_refused(movielens, tmp_path):
    path = movielens / "ratings.dat"
    path.write_text("".join(f"1::10::5::{1000 + i}\n" for i in range(100)))
    with pytest.raises(DataError, match=r"ratings\.dat: 100 of 100 rows have label 1"):
        prepare(movielens, folder=tmp_path)


def test_the_variable_points_to_movielens(movielens, tmp_path, monkeypatch):
    monkeypatch.setenv("LIRANK_DATA", str(movielens))
    assert prepare(folder=tmp_path).name == "MovieLens"
    monkeypatch.setenv("LIRANK_DATA", str(movielens / "absent"))
    with pytest.raises(DataError, match=r"LIRANK_DATA: .*absent: no such file or folder"):
        prepare(folder=tmp_path)


def test_a_label_for_movielens_is_refused(movielens, tmp_path):
    with pytest.raises(DataError, match="not for MovieLens"):
        prepare(movielens, "bought", folder=tmp_path)


def test_with_nothing_given_adult_is_read():
    data = prepare()
    assert (data.name, data.task, len(data.rows)) == ("UCI Adult", "income = >50K", 48_842)
    assert data.rows.labels.sum() == 11_687
    assert (len(data.schema.categorical), len(data.schema.numeric)) == (14, 6)


# ---- the demo ------------------------------------------------------------------------------


def test_the_demo_on_adult(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)  # however fast the machine is
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


def test_swap_and_quantize_reach_every_layer(data):
    import copy

    import lirank_ext
    from lirank_ext.conversion.swap import use_references
    from lirank_ext.models import LiRank

    model = use_references(LiRank(ranker.configuration(data))).eval()
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"ReferenceHashedEmbeddingBag", "ReferenceResidualCrossNet"} <= kinds
    swapped = copy.deepcopy(model)
    lirank_ext.swap(swapped)
    quantized = copy.deepcopy(swapped)
    lirank_ext.quantize(quantized)
    kinds = {type(module).__name__ for module in quantized.modules()}
    assert not [kind for kind in kinds if kind.startswith("Reference")]
    assert {"QuantizedHashedEmbeddingBag", "ResidualCrossNet", "IsotonicCalibration"} <= kinds
    features = data.batch(data.test).features
    torch.testing.assert_close(model(features), swapped(features), rtol=1e-4, atol=1e-4)
    assert measure.num_bytes(quantized.tables) < 0.3 * measure.num_bytes(model.tables)


def test_training_learns_and_calibrates(data):
    config = ranker.configuration(data, dim=8, rank=4)
    model = ranker.train(config, data, epochs=3)
    found = evaluate(model, data.memory(data.valid))["income=>50K"]
    assert found.auc > 0.85
    assert abs(found.observed_to_expected - 1) < 0.05


def test_reliability_bins_hold_all_rows():
    probabilities, labels = np.array([0.9, 0.1, 0.2, 0.8]), np.array([1.0, 0.0, 1.0, 1.0])
    predicted, observed = measure.reliability(probabilities, labels, bins=2)
    np.testing.assert_allclose(predicted, [0.15, 0.85])
    np.testing.assert_allclose(observed, [0.5, 1.0])


def test_epochs_fall_with_the_rows():
    assert [demo._epochs(rows, False) for rows in (1_000, 400_000, 5_000_000)] == [6, 3, 2]
    assert [demo._epochs(rows, True) for rows in (1_000, 150_000)] == [6, 2]


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
    assert message.startswith(f"lirank-ext demo: {path}")
    assert said in message


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert run("--output", str(tmp_path / "out")) == 2
    assert "--output" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert run("--output", str(tmp_path)) == 2
    assert packages.install_line("demo") in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["0", "-3", "many"])
def test_a_row_limit_is_a_positive_number(rows, capsys):
    assert run("--rows", rows) == 2
    assert "--rows" in capsys.readouterr().err


def test_the_demo_on_movielens(shared_data, tmp_path):
    arguments = ("--data", str(shared_data / "ml-1m"), "--rows", "4000", "--quick")
    assert run(*arguments, "--output", str(tmp_path)) == 0
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["data"]["name"] == "MovieLens"
    assert content["rows"] == {"train": 3200, "valid": 400, "test": 400}
