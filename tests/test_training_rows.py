"""Weights of rows, groups of rows, and what a training goes by."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from sklearn.metrics import ndcg_score, roc_auc_score  # noqa: E402
from test_training import make_config, weights, write_csv  # noqa: E402
from test_training_cli import SMALL, refused, run  # noqa: E402

from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.models import Categorical, ConfigError, Schema, Task  # noqa: E402
from lirank_ext.training import Config, check  # noqa: E402
from lirank_ext.training.average import WeightAverage  # noqa: E402
from lirank_ext.training.events import Events  # noqa: E402
from lirank_ext.training.grouped import Grouped  # noqa: E402
from lirank_ext.training.importance import importance, shuffled  # noqa: E402
from lirank_ext.training.metrics import measure  # noqa: E402
from lirank_ext.training.session import (  # noqa: E402
    load_model,
    open_loader,
    open_model,
    open_trainer,
)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def data(tmp_path):
    return write_csv(tmp_path / "clicks.csv")


def with_column(path, name, values):
    """The file with one more column before the label."""
    header, *lines = path.read_text().splitlines()
    rows = [header, *lines]
    cells = [name, *map(str, values)]
    pieces = [row.rsplit(",", 1) for row in rows]
    text = [f"{p[0]},{c},{p[1]}" for p, c in zip(pieces, cells, strict=True)]
    made = path.with_name(f"{name}.csv")
    made.write_text("\n".join(text) + "\n")
    return made


# Metrics


def random_rows(seed=0, n=400, ties=True):
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, 40, n), (rng.random(n) < 0.3).astype(np.float32)
    logits = rng.normal(size=n) + labels
    return (logits.round(1) if ties else logits), labels, groups, rng.random(n)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_gauc_and_ndcg_are_those_of_sklearn_group_by_group(ties, weighted):
    logits, labels, groups, w = random_rows(ties=ties)
    w = w if weighted else None
    areas, sizes, gains = [], [], []
    for g in np.unique(groups):
        mine = groups == g
        own = None if w is None else w[mine]
        if 0 < labels[mine].sum() < mine.sum():
            areas.append(roc_auc_score(labels[mine], logits[mine], sample_weight=own))
            sizes.append(mine.sum() if own is None else own.sum())
        if labels[mine].any():
            one_row = mine.sum() == 1
            gains.append(1.0 if one_row else ndcg_score([labels[mine]], [logits[mine]]))
    grouped = Grouped(logits, labels, groups, w)
    assert grouped.auc() == pytest.approx(np.average(areas, weights=sizes))
    assert grouped.ndcg() == pytest.approx(np.mean(gains))


def test_groups_with_one_label_have_no_gauc():
    grouped = Grouped(np.zeros(4), np.array([1, 1, 0, 0]), np.array([1, 1, 2, 2]))
    assert math.isnan(grouped.auc())
    assert grouped.ndcg() == 1
    empty = Grouped(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    assert math.isnan(empty.auc())
    assert math.isnan(empty.ndcg())


def test_a_weight_counts_as_so_many_rows():
    logits, labels, groups, _ = random_rows()
    times = np.random.default_rng(1).integers(0, 4, len(logits))
    repeated = (np.repeat(a, times) for a in (logits, labels, groups))
    many = measure(*[a for a in repeated][:2])
    once = measure(logits, labels, times.astype(np.float32))
    for name in ("auc", "log_loss", "observed_to_expected", "pr_auc", "base_log_loss"):
        assert getattr(once, name) == pytest.approx(getattr(many, name)), name


# Weights


def test_weights_act_as_repeated_rows(tmp_path):
    path = write_csv(tmp_path / "a.csv", rows=64)
    times = np.random.default_rng(0).integers(0, 3, 64)
    header, *lines = path.read_text().splitlines()
    several = tmp_path / "b.csv"
    repeated = [line for line, n in zip(lines, times, strict=True) for _ in range(n)]
    several.write_text("\n".join([header, *repeated]) + "\n")
    losses, grads = [], []
    for file, weight in ((with_column(path, "w", times), "w"), (several, None)):
        config = make_config(valid=0.0)
        config.model.schema.weight = weight
        config.model.embedding.dropout = config.model.mlp.dropout = 0.0
        trainer = open_trainer(config, [file])
        trainer.model.eval()  # batch norm sees rows, and not their weights
        batch = next(iter(open_loader(config, [file], BadRows())))
        for p in trainer.model.parameters():
            p.grad = None
        parts = [
            trainer._loss(trainer.model(b.features).float(), b) * len(b)
            for b in open_loader(config, [file], BadRows())
        ]
        loss = sum(parts) / len(repeated) if weight is None else parts[0] / len(batch)
        loss.backward()
        losses.append(loss.item())
        grads.append(trainer.dense[0].grad.clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*grads)


def test_a_weight_that_is_no_weight_is_refused(data, tmp_path, capsys):
    values = ["1"] * 600
    for bad, why in (("-2", "is -2, where 0 or more"), ("", "is missing"), ("x", "holds 'x'")):
        values[7] = bad
        file = with_column(data, "w", values)
        options = ["--label", "click", "--weight", "w", "--output", tmp_path / "o", *SMALL]
        text = refused(capsys, "train", file, *options)
        assert ":9" in text
        assert why in text
    text = refused(capsys, "train", data, "--label", "click", "--weight", "wi", *SMALL)
    assert "no column 'wi'" in text
    text = refused(capsys, "train", data, "--label", "click", "--weight", "click", *SMALL)
    assert "is the label" in text


def test_train_with_weights_and_groups(data, tmp_path, capsys):
    file = with_column(data, "w", np.random.default_rng(0).random(600).round(3))
    out, options = tmp_path / "m", ["--label", "click", "--weight", "w", "--group", "user"]
    options += ["--monitor", "gauc", "--label-smoothing", "0.1", "--ema", "0.9"]
    assert run("train", file, *options, "--output", out, *SMALL) == 0
    assert "GAUC" in capsys.readouterr().out
    schema = load_model(out)[1].model.schema
    assert (schema.weight, schema.group) == ("w", "user")
    assert "w" not in schema.columns
    assert "user" in schema.columns
    run("evaluate", out, file, "--json", tmp_path / "a.json")
    run("evaluate", out, file, "--group", "item", "--json", tmp_path / "b.json")
    ours, theirs = (json.loads((tmp_path / n).read_text())["click"] for n in ("a.json", "b.json"))
    assert ours["auc"] == theirs["auc"]
    assert ours["gauc"] != theirs["gauc"]
    # predict needs neither the label nor the weight
    assert run("predict", out, data, "--output", tmp_path / "p.csv") == 0
    assert "no column 'w'" in refused(capsys, "evaluate", out, data)
    text = refused(capsys, "train", file, "--resume", "--output", out, "--weight", "age")
    assert "--weight was 'w' there and is 'age' here" in text
    text = refused(
        capsys, "train", file, "--from", out, "--weight", "w", "--output", tmp_path / "n"
    )
    assert "--weight: the model of --from" in text


def test_monitors_that_cannot_be_measured_are_refused(data, tmp_path, capsys):
    options = ["--label", "click", "--output", tmp_path / "o", *SMALL]
    text = refused(capsys, "train", data, "--monitor", "gauc", *options)
    assert "--group" in text
    alone = with_column(data, "row", range(600))
    text = refused(capsys, "train", alone, "--monitor", "ndcg", "--group", "nothing", *options)
    assert "no column 'nothing'" in text
    text = refused(capsys, "train", alone, "--monitor", "gauc", "--group", "row", *options)
    assert "no group with both labels" in text


@pytest.mark.parametrize("monitor", ["auc", "log_loss", "pr_auc", "gauc", "ndcg"])
def test_the_best_evaluation_is_that_of_the_monitor(data, monitor):
    config = make_config(epochs=4, monitor="auc", patience=0)
    config.model.schema.group = "user"
    config.training.monitor = monitor
    trainer = open_trainer(config, [data])
    progress = trainer.fit()
    values = {e["step"]: e["tasks"]["click"][monitor] for e in progress.evaluations}
    best = (min if monitor == "log_loss" else max)(values.values())
    assert progress.best == best == values[progress.best_step]


# Smoothing and averages


def test_label_smoothing_moves_the_targets(data):
    trainer = open_trainer(make_config(label_smoothing=0.2), [data])
    batch = next(iter(trainer.train_loader))
    logits = torch.randn(len(batch), 1)
    p, y = logits.sigmoid(), batch.labels * 0.8 + 0.1
    wanted = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(trainer._loss(logits, batch), wanted)


def test_weight_average_is_its_formula():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average, wanted = WeightAverage({"p": p}, 0.5), None
    for step in range(20):
        with torch.no_grad():
            p.add_(1)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        now = p.detach().clone()
        wanted = now if wanted is None else decay * wanted + (1 - decay) * now
    torch.testing.assert_close(average.values["p"], wanted)
    with average.applied():
        torch.testing.assert_close(p.detach(), wanted)
    torch.testing.assert_close(p.detach(), now)


def test_averaged_weights_are_kept_and_survive_a_resume(data, tmp_path):
    def train(folder, **options):
        folder.mkdir(exist_ok=True)
        config = make_config(ema=0.9, patience=0, valid=0.0, checkpoint_every=1, **options)
        return open_trainer(config, [data], output=folder)

    whole = train(tmp_path / "whole")
    whole.fit()
    half = train(tmp_path / "half")

    def stop(trainer):
        if trainer.progress.step == 7:
            raise KeyboardInterrupt

    half.after_step = stop
    with pytest.raises(KeyboardInterrupt):
        half.fit()
    resumed = train(tmp_path / "half")
    resumed.resume()
    resumed.fit()
    for name, value in weights(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for name, value in whole.average.values.items():
        assert torch.equal(whole.model.state_dict()[name], value), name


# Check and importance


def test_check_says_where_the_ranker_is_behind(data, tmp_path, capsys):
    out = tmp_path / "m"
    options = ["--label", "click", "--check", "--set", "model.embedding.enabled=false"]
    assert run("train", data, *options, "--output", out, *SMALL) == 0
    shown = capsys.readouterr()
    assert "a logistic regression ranks 'click' better than this model" in shown.err
    check = json.loads((out / "report.json").read_text())["check"]
    models = check["tasks"]["click"]
    assert set(models) == {"ranker", "logistic regression", "boosted trees"}
    assert models["logistic regression"]["gain"] == pytest.approx(
        models["logistic regression"]["auc"] - models["ranker"]["auc"]
    )
    text = refused(
        capsys, "train", data, *options, "--output", tmp_path / "n", *SMALL,
        "--set", "training.valid=0",
    )  # fmt: skip
    assert "--check: there are no rows to validate on" in text


def test_a_check_of_one_class_has_no_figures_and_is_json(capsys):
    from lirank_ext.cli.results import print_check

    logits, labels = np.array([0.1, 0.2, 0.3]), np.zeros(3)
    figures = check._figures(logits, logits, labels, None)
    assert figures["auc"] is None and figures["log_loss"] > 0
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    print_check({"rows": 3, "sample": 9, "tasks": {"click": {"ranker": figures}}, "warnings": []})
    assert "nan" not in capsys.readouterr().out
    one = np.array([0.0, 0.0, 1.0])  # a single positive has no error
    rival = check._figures(logits[::-1].copy(), logits, one, None)
    assert rival["error"] is None and not check._warnings("click", {"ranker": rival, "a": rival})


def test_trees_read_the_same_columns_of_both_parts():
    def rows(lengths):
        bags = {"ids/a": (np.arange(3), np.ones(3, int))}
        bags["ids/list"] = (np.arange(sum(lengths)), np.array(lengths))
        return SimpleNamespace(bags=bags, numeric=np.zeros((3, 0)), __len__=lambda: 3)

    sample, valid = check._tables(rows([1, 1, 1]), rows([0, 2, 1]))
    assert sample.ids.shape == valid.ids.shape == (3, 1)


def test_importance_finds_the_columns_that_matter(data, tmp_path, capsys):
    file = with_column(data, "noise", np.random.default_rng(0).integers(0, 5, 600))
    out = tmp_path / "m"
    assert run("train", file, "--label", "click", "--output", out, *SMALL, "--epochs", "8") == 0
    capsys.readouterr()
    assert run("importance", out, file, "--repeats", "3", "--json", tmp_path / "i.json") == 0
    assert "standard error" in capsys.readouterr().out
    found = json.loads((tmp_path / "i.json").read_text())
    losses = {c["column"]: c["loss"] for c in found["columns"]}
    assert set(losses) == {"user", "item", "age", "past", "noise"}
    assert losses["user"] > losses["noise"]
    assert all(c["error"] >= 0 for c in found["columns"])
    used = open_model(out, [file])
    assert importance(used, repeats=3)[0] == found["whole"]
    text = refused(capsys, "importance", out, file, "--metric", "gauc")
    assert "--group" in text


def test_a_shuffle_moves_all_features_of_a_column(data, tmp_path):
    out = tmp_path / "m"
    assert run("train", data, "--label", "click", "--output", out, *SMALL, "--epochs", "1") == 0
    used = open_model(out, [data])
    rows, schema = used.loader.sample(10**6), used.config.model.schema
    order = np.random.default_rng(0).permutation(len(rows))
    moved = shuffled(rows, schema, "age", order)
    place = schema.numeric.index("age")
    assert np.array_equal(moved.numeric[:, place], rows.numeric[order, place])
    assert np.array_equal(moved.bags["ids/age"][0], rows.bags["ids/age"][0][order])
    assert np.array_equal(moved.bags["ids/user"][0], rows.bags["ids/user"][0])


# Fewer negatives


def rare(path, rows=6000):
    """Rare clicks, by a user."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 10, rows)
    click = rng.random(rows) < np.where(user < 5, 0.02, 0.1)
    lines = [f"u{u},{int(c)}" for u, c in zip(user, click, strict=True)]
    path.write_text("\n".join(["user,click", *lines]) + "\n")
    return path


def test_fewer_negatives_keep_the_probabilities(tmp_path, capsys):
    file, out = rare(tmp_path / "a.csv"), tmp_path / "m"
    options = [*SMALL, "--label", "click", "--negatives", "0.1", "--epochs", "6", "--lr", "0.01"]
    assert run("train", file, *options, "--output", out) == 0
    assert run("evaluate", out, file, "--json", tmp_path / "e.json") == 0
    figures = json.loads((tmp_path / "e.json").read_text())["click"]
    assert figures["rows"] == 6000
    # Uncorrected, a tenth of the negatives would make it about a seventh.
    assert 0.75 < figures["observed_to_expected"] < 1.3
    two = ["--label", "click", "--label", "user=u1", "--negatives", "0.5", "--output", out]
    other = with_column(file, "item", [f"i{i % 7}" for i in range(6000)])
    text = refused(capsys, "train", other, *two, "--overwrite")
    assert "training.negatives" in text
    assert "wanted a share in (0, 1]" in refused(
        capsys, "train", file, "--label", "click", "--negatives", "0", "--output", tmp_path / "n"
    )


def test_negatives_are_left_out_of_the_training_only(tmp_path):
    file = rare(tmp_path / "a.csv")
    schema = Schema(categorical=[Categorical("user")], tasks=[Task("click")])
    settings = {"batch_size": 64, "epochs": 2, "negatives": 0.25, "prefetch": 0}
    config = Config.from_dict({"model": {"schema": asdict(schema)}, "training": settings})
    trainer = open_trainer(config, [file])
    valid = np.concatenate([b.labels.numpy() for b in trainer.valid_loader])
    train = np.concatenate([b.labels.numpy() for b in trainer.train_loader])
    assert 0.04 < valid.mean() < 0.08
    assert 0.15 < train.mean() < 0.28
    assert trainer.steps == pytest.approx(2 * len(train) / 64, abs=2)
    again = np.concatenate([b.labels.numpy() for b in trainer.train_loader])
    assert len(again) == len(train)


def test_what_is_fitted_to_all_rows_alike_is_refused():
    data = make_config().to_dict()
    data["model"]["schema"]["popularity"] = "item"
    for key, value in (("negatives", 0.5), ("weight", "age")):
        changed = copy.deepcopy(data)
        place = changed["training"] if key == "negatives" else changed["model"]["schema"]
        place[key] = value
        with pytest.raises(ConfigError, match=f"{key}: model.popularity is fitted to all rows"):
            Config.from_dict(changed)


def test_tensorboard_shows_norms(data, tmp_path, monkeypatch):
    trainer = open_trainer(make_config(epochs=1), [data])
    written = {}

    class Writer:
        def add_scalar(self, name, value, step):
            written[name] = value

        def flush(self):
            pass

    trainer.events = Events(Writer())
    trainer.fit()
    table = trainer.model.tables["t_ids"]
    assert written["norms/ids/quotient_b"] > 0
    rows = table.quotient_b.detach().norm(dim=1).mean().item()
    assert written["norms/ids/quotient_b"] == pytest.approx(rows)
    dense = torch.cat([p.detach().flatten() for p in trainer.dense]).norm().item()
    assert written["norms/dense"] == pytest.approx(dense, rel=1e-4)
    assert written["norms/gradient"] > 0


def test_tensorboard_itself_takes_the_events(tmp_path):
    pytest.importorskip("tensorboard")
    events = Events.open(tmp_path / "events", 0)
    events.writer.add_scalar("training/loss", 0.5, 3)
    events.writer.flush()
    assert any(path.stat().st_size for path in (tmp_path / "events").iterdir())


def test_events_change_no_gradient_that_is_not_clipped(data):
    def trained(events):
        trainer = open_trainer(make_config(clip=0.0, epochs=1), [data])
        if events:
            trainer.events = SimpleNamespace(gradient_norm=None, write=lambda *a: None)
        trainer.fit()
        return weights(trainer)

    plain, watched = trained(False), trained(True)
    assert all(torch.equal(plain[k], watched[k]) for k in plain)


def test_small_gains_are_kept_and_do_not_count(data, monkeypatch):
    values = iter([0.6, 0.6001, 0.6001, 0.7, 0.70005, 0.6])
    trainer = open_trainer(make_config(epochs=6, patience=3, tolerance=0.01), [data])
    monkeypatch.setattr("lirank_ext.training.trainer.mean", lambda *_: next(values))
    worse = []
    restart = trainer.average.restart
    trainer.average.restart = lambda: (worse.append(trainer.progress.worse), restart())
    progress = trainer.fit()
    assert progress.best == 0.70005
    assert worse == [1, 2, 1, 2]
    assert len(progress.evaluations) == 6
