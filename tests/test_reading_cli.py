"""How files are read, from the command line: shown, kept, and the same when a model is used."""

from __future__ import annotations

import csv
import json
import math
import random
import statistics

import pytest

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from lirank_ext.cli import main  # noqa: E402
from lirank_ext.training import checkpoint  # noqa: E402
from lirank_ext.training.session import MODEL, load_model  # noqa: E402

SMALL = ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]", "--tune", "off"]
SMALL += ["--set", "model.cross.rank=4", "--set", "training.fisher_rows=0", "--overwrite"]


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def run(*args) -> int:
    return main([str(a) for a in args])


def columns(rows: int = 400, **more) -> dict[str, list]:
    """A user whose number decides the click, and other columns."""
    draw = random.Random(0)
    user = [draw.randrange(8) for _ in range(rows)]
    click = [int(draw.random() < 1 / (1 + math.exp(4 - u))) for u in user]
    return {"user": [f"u{u}" for u in user], **more, "click": click}


def write(path, data, header: bool = True):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(data)
        writer.writerows(zip(*data.values(), strict=True))
    return path


def scores(capsys, model, path) -> list[str]:
    capsys.readouterr()
    assert run("predict", model, path) == 0
    return [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_train_shows_and_keeps_how_columns_are_read(tmp_path, capsys):
    path = write(
        tmp_path / "a.csv", columns(same=[1] * 400, shop=[f"s{i % 9}" for i in range(400)])
    )
    out = tmp_path / "m"
    assert run("train", path, "--output", out, "--epochs", 1, *SMALL) == 0
    said = capsys.readouterr().out
    assert said.index("the same value in every row") < said.index("rows: 400")
    kept = {c["name"]: c for c in json.loads((out / "columns.json").read_text())}
    assert {name: c["role"] for name, c in kept.items()} == {
        **{"click": "label", "user": "id", "same": "left out", "shop": "id"}
    }
    assert (kept["shop"]["distinct"], kept["shop"]["missing"]) == (9, 0)


def test_inspect_shows_every_column(tmp_path, capsys):
    tags = ["a;b" if i % 3 else "b;c" for i in range(400)]
    path = write(tmp_path / "a.csv", columns(tags=tags, price=[i / 7 for i in range(400)]))
    file = tmp_path / "columns.json"
    assert run("inspect", path, "--list", "tags=;", "--ignore", "user", "--json", file) == 0
    said = capsys.readouterr().out
    kept = {c["name"]: c for c in json.loads(file.read_text())}
    roles = {"click": "label", "user": "left out", "tags": "ids", "price": "number"}
    assert {name: c["role"] for name, c in kept.items()} == roles
    for column in kept.values():
        assert column["name"] in said and column["why"] in said and column["example"] in said
    assert run("inspect", path, "--list", "tags") == 2
    assert "--list: wanted COLUMN=SEPARATOR, got 'tags'" in capsys.readouterr().err


def test_inspect_needs_no_label(tmp_path, capsys):
    data = columns()
    del data["click"]
    assert run("inspect", write(tmp_path / "a.csv", data)) == 0
    assert "user" in capsys.readouterr().out


def test_a_model_knows_the_names_of_files_without_a_header(tmp_path, capsys):
    data = columns(number=[i % 13 for i in range(400)])
    bare, headed = write(tmp_path / "bare.csv", data, False), write(tmp_path / "headed.csv", data)
    out, names = tmp_path / "m", ",".join(data)
    assert run("train", bare, "--output", out, "--epochs", 1, *SMALL) == 2
    assert "--names" in capsys.readouterr().err
    assert run("train", bare, "--names", names, "--output", out, "--epochs", 1, *SMALL) == 0
    assert scores(capsys, out, bare) == scores(capsys, out, headed)
    assert run("evaluate", out, bare) == 0


@pytest.mark.parametrize(
    "values",
    [
        [1e6 + i * 7 % 20 - 10 for i in range(600)],
        [2010 + i * 7 % 15 for i in range(600)],
        [1_700_000_000_000 + i * 7919 % 2_592_000 * 1000 for i in range(600)],
    ],
)
def test_a_column_far_from_zero_does_no_harm(tmp_path, values):
    """On 600 rows, where a run has few steps and the first evaluations decide."""

    def best(name, x):
        path, out = write(tmp_path / f"{name}.csv", columns(600, x=x)), tmp_path / name
        assert run("train", path, "--numeric", "x", "--output", out, "--tune", "off") == 0
        evaluations = json.loads((out / "report.json").read_text())["evaluations"]
        return max(e["tasks"]["click"]["auc"] for e in evaluations)

    mean, scale = statistics.fmean(values), statistics.pstdev(values)
    near = best("near", [round((v - mean) / scale, 9) for v in values])
    assert near > 0.8
    assert abs(best("far", values) - near) < 0.01


def test_a_model_whose_ids_followed_another_rule_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", columns())
    out = tmp_path / "m"
    assert run("train", path, "--output", out, "--epochs", 1, *SMALL) == 0
    tensors, content = checkpoint.load(out / MODEL)
    assert content["config"]["model"]["schema"].pop("version") == 2
    checkpoint.save(out / MODEL, tensors, content)
    with pytest.raises(checkpoint.CheckpointError, match="values became ids by another rule"):
        load_model(out)


def test_a_label_that_nobody_named_is_known_by_its_name(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("user,click\na,1\nb,0\nc,1\n")
    for options, why in (((), "its name"), (("--label", "click"), "--label")):
        assert main(["inspect", str(tmp_path / "data.csv"), *options]) == 0
        (line,) = (x for x in capsys.readouterr().out.splitlines() if "click" in x)
        assert why in line
