from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import write_csv  # noqa: E402

import lirank_ext  # noqa: E402
from lirank_ext.cli import main  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.labels import parse_labels  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402
from lirank_ext.models import ConfigError, Task  # noqa: E402
from lirank_ext.training import summary, trainer  # noqa: E402
from lirank_ext.training.checkpoint import CheckpointError  # noqa: E402
from lirank_ext.training.metrics import measure  # noqa: E402
from lirank_ext.training.session import load_model, open_loader  # noqa: E402
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
    header, *lines = csv.reader((tmp_path / "p.csv").read_text().splitlines())
    assert header == ["click", "row"]
    assert [row for _, row in lines] == [str(i + 1) for i in range(600)]
    assert all(0 < float(p) < 1 for p, _ in lines)
    if preset != "jobs":
        assert run("calibrate", out, data, "--output", tmp_path / "c") == 0
        assert load_model(tmp_path / "c")[0].calibration is not None
    else:
        assert "has no calibration" in refused(capsys, "calibrate", out, data)


def test_trained_model_swaps_quantizes_and_serves(data, tmp_path):
    out = tmp_path / "model"
    assert run("train", data, "--label", "click", "--output", out, *SMALL) == 0
    model, config = load_model(out)
    batch = next(iter(open_loader(config, [data], BadRows())))
    with torch.inference_mode():
        before = model.predict(batch.features)
        lirank_ext.swap(model)
        torch.testing.assert_close(model.predict(batch.features), before)
        lirank_ext.quantize(model)
        after = model.predict(batch.features)
    # Probabilities: int8 rows are off by up to 1/510 of their range each.
    torch.testing.assert_close(after, before, atol=0.02, rtol=0)
    assert not torch.equal(after, before)


def test_ablate_in_several_processes_is_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = refused(capsys, "ablate", data, "--label", "click", "--output", tmp_path / "o", *SMALL)
    assert "runs in one process, and torchrun started 2" in text
    assert not (tmp_path / "o").exists()


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
    nowhere = ("train", tmp_path / "no.csv", "--label", "click", "--output", tmp_path / "new")
    assert "no such file" in refused(capsys, *nowhere)
    assert not (tmp_path / "new").exists()
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
    off = ("ablate", data, "--label", "click", *SMALL, "--switch", "attention")
    assert "--switch attention: changes nothing" in refused(capsys, *off)
    kept.write_text("[]")
    assert "no results of an ablation" in refused(capsys, *ablate)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model trained for one epoch, with its folder."""
    folder = tmp_path_factory.mktemp("model")
    data = write_csv(folder / "clicks.csv")
    train = ("train", data, "--label", "click", "--output", folder / "m", *SMALL)
    assert run(*train, "--epochs", "1") == 0
    return folder / "m"


def predicted(text) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))[1:]


def test_predict_keeps_a_line_for_every_row(model, data, tmp_path, capsys):
    """BadRows rows and records with other fields than the header's, in two files."""
    lines = data.read_text().splitlines()[:41]
    (tmp_path / "good.csv").write_text("\n".join(lines) + "\n")
    broken = list(lines)
    broken[1] += ",7"  # the first record
    broken[20] = broken[20].split(",", 1)[1]
    fields = broken[30].split(",")
    fields[2] = "old"
    broken[30] = ",".join(fields)
    broken[40] += ",7"  # the last record
    (tmp_path / "bad.csv").write_text("\n".join(broken) + "\n")
    (tmp_path / "none.csv").write_text(lines[0] + "\n1\n2\n")
    files = [tmp_path / f"{name}.csv" for name in ("bad", "none", "good")]
    capsys.readouterr()
    assert run("predict", model, tmp_path / "good.csv") == 0
    good = predicted(capsys.readouterr().out)
    assert run("predict", model, *files, "--skip-bad-rows") == 0
    out, err = capsys.readouterr()
    rows = predicted(out)
    assert [row for _, row in rows] == [str(i + 1) for i in range(82)]
    lost = {0, 19, 29, 39, 40, 41}
    wanted = [p for p, _ in good] + ["", ""] + [p for p, _ in good]
    for i, (p, _) in enumerate(rows):
        if i in lost:
            assert p == ""
        else:
            assert float(p) == pytest.approx(float(wanted[i]), abs=1e-6)
    assert "6 broken rows were skipped" in err
    assert run("predict", model, *files) == 2
    assert "bad.csv:2: 6 fields" in capsys.readouterr().err
    # The key of a record with too few fields is not known.
    assert run("predict", model, *files, "--skip-bad-rows", "--key", "user") == 0
    keys = [key for _, key in predicted(capsys.readouterr().out)]
    users = [line.split(",")[0] for line in lines[1:]]
    wanted = [*users, "", "", *users]
    assert keys == ["" if i in lost - {29} else wanted[i] for i in range(82)]


def test_predict_writes_parquet(model, data, tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import csv as reader
    from pyarrow import parquet

    table = reader.read_csv(data).slice(0, 50)
    table = table.append_column("number", pa.array(range(50)))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    out = tmp_path / "p.parquet"
    assert run("predict", model, tmp_path / "a.parquet", "--key", "number", "--output", out) == 0
    written = parquet.read_table(out)
    assert written.schema.names == ["click", "number"]
    assert written["number"].to_pylist() == list(range(50))
    capsys.readouterr()
    assert run("predict", model, tmp_path / "a.parquet") == 0
    shown = [float(p) for p, _ in predicted(capsys.readouterr().out)]
    assert written["click"].to_pylist() == pytest.approx(shown, abs=1e-6)
    assert "no column 'nummer'; did you mean 'number'?" in refused(
        capsys, "predict", model, tmp_path / "a.parquet", "--key", "nummer"
    )


def test_predict_that_ends_early_leaves_no_file(model, data, tmp_path, capsys):
    out = tmp_path / "p.csv"
    out.write_text("old\n")
    bad = tmp_path / "bad.csv"
    bad.write_text(data.read_text() + "u1,i1,old,,1\n")
    assert "holds 'old'" in refused(capsys, "predict", model, bad, "--output", out)
    assert out.read_text() == "old\n"
    assert [p.name for p in tmp_path.glob("p.csv*")] == ["p.csv"]
    assert "there is no folder" in refused(
        capsys, "predict", model, data, "--output", tmp_path / "none" / "p.csv"
    )


def test_predict_into_a_pipe_that_closes(model, tmp_path):
    data = write_csv(tmp_path / "many.csv", 20_000)
    command = [sys.executable, "-m", "lirank_ext", "predict", str(model), str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"click,row\n"
    process.stdout.close()
    _, err = process.communicate()
    assert err == b""
    assert process.returncode == 141


def test_a_finished_run_goes_on_for_more_epochs(data, tmp_path, capsys):
    out = tmp_path / "model"
    train = ("train", data, "--label", "click", "--output", out, *SMALL)
    assert run(*train, "--epochs", "1", "--json", tmp_path / "r.json") == 0
    first = json.loads((out / "report.json").read_text())
    assert first == json.loads((tmp_path / "r.json").read_text())
    assert first["ended"] == "1 epoch is done"
    capsys.readouterr()
    assert run("train", data, "--output", out, "--resume") == 0
    assert "nothing was left to train" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["steps"] == first["steps"]
    assert run("train", data, "--output", out, "--resume", "--epochs", "3") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 3 * first["steps"]
    assert report["ended"] == "3 epochs are done"
    assert [e["step"] for e in report["evaluations"]] == [first["steps"] * i for i in (1, 2, 3)]
    assert load_model(out)[1].training.epochs == 3


def test_resume_honors_or_refuses_what_is_given(data, tmp_path, capsys):
    out = tmp_path / "model"
    train = ("train", data, "--label", "click", "--output", out, *SMALL, "--ignore", "past")
    assert run(*train) == 0
    assert run(*train, "--resume") == 0  # the same again is no change
    resume = ("train", data, "--output", out, "--resume")
    capsys.readouterr()
    text = refused(capsys, *resume, "--seed", "1")
    assert "training.seed is 0 there and 1 here" in text and "epochs" in text
    assert "training.lr is 0.001" in refused(capsys, *resume, "--lr", "0.1")
    assert "model.cross.rank is 4" in refused(capsys, *resume, "--set", "model.cross.rank=8")
    (tmp_path / "c.yaml").write_text("training: {warmup: 0.5}\n")
    assert "training.warmup" in refused(capsys, *resume, "--config", tmp_path / "c.yaml")
    assert "--ignore was ['past'] there" in refused(capsys, *resume, "--ignore", "age")
    assert "--preset was not given" in refused(capsys, *resume, "--preset", "feed")
    assert "--label was ['click']" in refused(capsys, *resume, "--label", "click=1")
    other = write_csv(tmp_path / "other.csv", 300)
    assert "another data" in refused(capsys, "train", other, "--output", out, "--resume")
    text = data.read_text()  # another file of the same name and size
    data.write_text(text[:-2] + ("0" if text[-2] == "1" else "1") + "\n")
    assert "another data" in refused(capsys, *resume)
    data.write_text(text)
    assert "click" in (out / "config.yaml").read_text()


def test_the_start_can_be_set_as_any_other_value(data, tmp_path, capsys):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    train = ("train", data, "--label", "click", *SMALL, "--epochs", "1")
    assert run(*train, "--output", one) == 0
    assert run("train", data, "--from", one, "--output", two, "--epochs", "1") == 0
    start = ("--set", f"training.start_from={one}")
    assert run("train", data, *start, "--output", three, "--epochs", "1") == 0
    ours, theirs = load_model(two)[0].state_dict(), load_model(three)[0].state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    nowhere = ("--set", f"training.start_from={tmp_path / 'none'}")
    assert "no such file" in refused(capsys, "train", data, *nowhere, "--output", tmp_path / "x")


def test_train_says_what_it_found_and_why_it_ended(data, tmp_path, capsys):
    train = ("train", data, "--label", "click", "--output", tmp_path / "m", *SMALL, "--threads", 1)
    more = ("--epochs", "30", "--lr", "0.01", "--batch-size", "100", "--set", "training.patience=1")
    assert run(*train, *more) == 0
    out, err = capsys.readouterr()
    assert "\r" not in err
    assert "numeric: 1 (age)" in out and "ids: 4 (user, item, age, past)" in out
    assert "labels: 1 (click)" in out and "rows: 600" in out
    assert "table ids:" in out and "rows of 4" in out and "parameters: " in out
    assert "stopped early in epoch " in out and "without a better auc" in out
    assert "rows a second" in out
    training = load_model(tmp_path / "m")[1].training
    assert (training.lr, training.batch_size, training.epochs) == (0.01, 100, 30)
    assert "--threads: wanted a positive number" in refused(capsys, *train[:-1], "0")


def test_labels_that_no_row_has_name_those_there_are(data, tmp_path, capsys):
    train = ("train", data, "--output", tmp_path / "o", *SMALL)
    text = refused(capsys, *train, "--label", "click=yes")
    assert "no label 'click' is 'yes': the column holds '" in text
    assert "'0'" in text and "'1'" in text
    monitor = ("--set", "training.monitor=log_loss")
    assert "is 'yes'" in refused(capsys, *train, "--label", "click=yes", *monitor)
    assert " more" in refused(capsys, *train, "--label", "user=nobody")
    assert "no label 'age' is >=1000" in refused(capsys, *train, "--label", "age>=1000")
    assert "every label 'age' is >-1000" in refused(capsys, *train, "--label", "age > -1000")
    assert "did you mean 'age'" in refused(capsys, *train, "--label", "agee>=4")
    assert "where a number was wanted" in refused(capsys, *train, "--label", "user>=4")
    text = refused(capsys, *train, "--label", "user")
    assert "where 0 or 1 was wanted; the column holds 'u" in text
    assert "give --label 'user=VALUE'" in text
    assert "give --label 'age>=NUMBER'" in refused(capsys, *train, "--label", "age")


@pytest.mark.parametrize(("sign", "share"), [(">=", 0.3), (">", 0.2), ("<", 0.7), ("<=", 0.8)])
def test_numbers_become_labels_by_a_threshold(tmp_path, sign, share):
    """Of ratings 1 to 10 with as many of each."""
    lines = [f"u{i % 7},{i % 10 + 1}{'.0' * (i % 2)}" for i in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["user,rating", *lines]) + "\n")
    label = f"rating{sign}8"
    train = ("train", tmp_path / "a.csv", "--label", label, "--output", tmp_path / "m", *SMALL)
    assert run(*train, "--set", "training.monitor=log_loss") == 0
    model, config = load_model(tmp_path / "m")
    assert model.task_names == [label]
    assert config.model.schema.tasks[0].threshold == f"{sign}8"
    labels = [b.labels for b in open_loader(config, [tmp_path / "a.csv"], BadRows())]
    assert torch.cat(labels).mean().item() == pytest.approx(share)


def test_columns_whose_names_hold_signs_can_be_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,a=b,x>=1,income\n0,1,1,>50\n1,2,0,<=50\n")
    file = Source([path], []).files[0]

    def parsed(label):
        task = parse_labels(file, [label])[0]
        return task.source, task.positive, task.threshold

    assert parsed("a=b") == ("a=b", None, None)
    assert parsed("a=1") == ("a", "1", None)
    assert parsed("a=b=2") == ("a=b", "2", None)
    assert parsed("a=b>1.5") == ("a=b", None, ">1.5")
    assert parsed("x>=1") == ("x>=1", None, None)
    assert parsed("income=>50") == ("income", ">50", None)
    assert parsed("income=<=50") == ("income", "<=50", None)
    assert parsed("a <= -2e3") == ("a", None, "<=-2e3")
    with pytest.raises(ConfigError, match="wanted a comparison such as '>=4', got '=4'"):
        Task("x", threshold="=4")
    with pytest.raises(ConfigError, match="wanted one of threshold"):
        Task("x", "x", "1", threshold=">4")


def test_sizes_and_seeds_out_of_range_are_one_sentence(data, tmp_path, capsys):
    train = ("train", data, "--label", "click", "--output", tmp_path / "o", *SMALL)
    assert "cannot be built" in refused(capsys, *train, "--set", "model.mlp.dims=[99999999999]")
    assert "seed: wanted a number below" in refused(capsys, *train, "--seed", str(2**64))
    assert "has no keys of its own" in refused(capsys, *train, "--set", "training=5")
    assert "wanted keys and values, got 5" in refused(capsys, *train, "--set", "modell=5")
    (tmp_path / "deep.yaml").write_text("[" * 20_000)
    assert "deep.yaml" in refused(capsys, *train, "--config", tmp_path / "deep.yaml")
    assert "finite" in refused(capsys, *train, "--lr", "1e30")
    assert "wanted the name of a folder" in refused(capsys, *train, "--output", "")
    assert "a folder was wanted" in refused(capsys, *train, "--output", data)


def test_a_flipped_bit_anywhere_is_found(model):
    """In the tensors, the configuration, the names and the types."""
    file = model / "model.safetensors"
    whole = file.read_bytes()
    try:
        for i in range(8, len(whole), len(whole) // 60):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(CheckpointError):
                load_model(model)
        header = whole.index(b"batch_size")
        for i in range(header, header + 2000, 40):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(CheckpointError):
                load_model(model)
    finally:
        file.write_bytes(whole)
    assert load_model(model)


def test_a_model_worse_than_a_constant_is_pointed_out():
    bad = measure(np.array([3.0, -3.0]), np.array([0.0, 1.0]))
    good = measure(np.array([-3.0, 3.0]), np.array([0.0, 1.0]))
    assert bad.base_log_loss == pytest.approx(math.log(2))
    found = summary.warnings({"bad": bad.as_json(), "good": good.as_json()})
    assert len(found) == 1
    assert "'bad' is 3.0486, worse than 0.6931" in found[0]


def test_a_signal_during_the_last_evaluation_is_not_lost(data, tmp_path, monkeypatch, capsys):
    """Between two trials it would be: each has signals of its own."""
    out = tmp_path / "m"
    train = ("train", data, "--label", "click", "--output", out, *SMALL, "--tune", "on")
    whole = tmp_path / "whole"
    assert run(*train[:4], "--output", whole, *train[6:]) == 0
    evaluate = trainer.evaluate
    calls = []

    def pressed(*args):
        calls.append(args)
        if len(calls) == 2:  # at the end of the first trial's last epoch
            signal.raise_signal(signal.SIGINT)
        return evaluate(*args)

    monkeypatch.setattr(trainer, "evaluate", pressed)
    assert run(*train) == 130
    assert len(calls) == 2
    assert "--resume goes on from" in capsys.readouterr().err
    monkeypatch.setattr(trainer, "evaluate", evaluate)
    assert run(*train, "--resume") == 0
    ours, theirs = load_model(out)[0].state_dict(), load_model(whole)[0].state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
