"""Regularization that is chosen on the validation rows."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import make_config, weights, write_csv  # noqa: E402

from lirank_ext.__main__ import main  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.library.packages import install_line  # noqa: E402
from lirank_ext.models import (  # noqa: E402
    Categorical,
    ConfigError,
    Embedding,
    LiRankConfig,
    Schema,
    Task,
)
from lirank_ext.training import search, tuning  # noqa: E402
from lirank_ext.training.defaults import ADAM_LR, flat  # noqa: E402
from lirank_ext.training.metrics import difference_error, measure  # noqa: E402
from lirank_ext.training.search import Search  # noqa: E402
from lirank_ext.training.session import load_model, open_data, open_trainer  # noqa: E402
from lirank_ext.training.settings import Config  # noqa: E402
from lirank_ext.training.signals import Interrupted  # noqa: E402
from lirank_ext.training.trainer import CHECKPOINT  # noqa: E402
from lirank_ext.training.tuning import Tuner  # noqa: E402


def config_for(**training) -> Config:
    """With how ``train`` lets ids learn, so that no trial equals another."""
    return make_config(table_lr=0.1, table_start=10.0, **training)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def data(tmp_path):
    return write_csv(tmp_path / "clicks.csv", 300)


def test_the_trial_that_validates_best_is_kept(data, tmp_path):
    config = config_for(epochs=3)
    files = open_data(config, [data])
    tuner = Tuner(config, set(), files, tmp_path)
    trainer, best = tuner.run()
    assert len(tuner.trials) == len(tuning.TRIALS)
    first = tuner.trials[0]
    better = [t for t in tuner.trials if t.best > first.best + t.noise]
    assert best is max(better, key=lambda t: t.best, default=first)
    assert all(t.noise > 0 for t in tuner.trials[1:])
    assert len({t.best for t in tuner.trials}) > 1  # the settings do differ
    # Bit for bit what a training with these settings gives.
    alone = open_trainer(best.config, [data])
    assert alone.fit().best == best.best
    ours, theirs = weights(trainer), weights(alone)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_log_loss_is_to_fall(data, tmp_path):
    config = config_for(epochs=2, monitor="log_loss")
    tuner = Tuner(config, set(), open_data(config, [data]), tmp_path)
    _, best = tuner.run()
    first = tuner.trials[0]
    better = [t for t in tuner.trials if t.best < first.best - t.noise]
    assert best is min(better, key=lambda t: t.best, default=first)


def test_the_first_is_kept_unless_another_is_better_by_more_than_the_noise(data, tmp_path):
    for monitor, sign in (("auc", 1), ("log_loss", -1)):
        tuner = Tuner(config_for(monitor=monitor), set(), None, tmp_path)
        first, *others = tuner.trials[:4]
        first.best = 0.5
        for trial, gain, noise in zip(
            others, (0.01, 0.03, -0.01), (0.005, 0.02, 0.005), strict=True
        ):
            trial.best, trial.noise = 0.5 + sign * gain, noise
        assert tuner.best() is others[1]
        others[1].noise = 0.04
        assert tuner.best() is others[0]
        others[0].best = 0.5
        assert tuner.best() is first


def test_the_noise_is_that_of_resampled_rows():
    rng = np.random.default_rng(0)
    n = 4000
    labels = (rng.random(n) < 0.3).astype(float)
    ours = labels + rng.normal(size=n)
    theirs = ours + 0.5 * rng.normal(size=n)
    for name in ("auc", "log_loss"):
        gaps = []
        for _ in range(300):
            rows = rng.integers(0, n, n)
            a, b = (measure(x[rows], labels[rows]) for x in (ours, theirs))
            gaps.append(getattr(a, name) - getattr(b, name))
        found = difference_error(ours, theirs, labels, name)
        assert found == pytest.approx(np.std(gaps), rel=0.15)


def test_what_the_user_gave_is_not_tried():
    config = config_for()
    assert [t.name for t in tuning.trials(config, set())] == list(tuning.TRIALS)
    fixed = {"model.embedding.dropout", "model.mlp.dropout"}
    made = tuning.trials(config, fixed)
    assert "light" not in [t.name for t in made]  # nothing is left of it
    assert all(t.config.model.mlp.dropout == config.model.mlp.dropout for t in made)
    keys = {k for changes in tuning.TRIALS.values() for k in changes}
    assert [t.name for t in tuning.trials(config, keys)] == ["middle"]
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_adam_is_tried_where_tables_are_small(monkeypatch):
    config = config_for()
    rows = tuning.table_rows(config)
    assert rows == 2 * (100 + 3)  # of 300 buckets by three remainders, twice
    names = [t.name for t in tuning.trials(config, set())]
    assert names[-2:] == ["ridge", "linear ridge"]
    plain = tuning.trials(config, set())[-2].config.training
    assert (plain.schedule, plain.epochs) == (config.training.schedule, config.training.epochs)
    kept = [t.name for t in tuning.trials(config, {"training.schedule"})]
    assert kept == names[:-1]
    ridge = tuning.trials(config, set())[-1].config.training
    assert (ridge.table_optimizer, ridge.table_lr, ridge.table_l2) == ("adam", ADAM_LR, 0.05)
    assert (ridge.schedule, ridge.epochs) == ("linear", 2)  # of the two that are asked for
    long = tuning.trials(config_for(epochs=40), set())[-1].config.training
    assert long.epochs == tuning.RIDGE_EPOCHS
    assert (
        tuning.trials(config_for(epochs=40), {"training.epochs"})[-1].config.training.epochs == 40
    )
    assert tuning.trials(config, set())[-1].config.model.embedding.dim == 4  # as the user has it
    for columns, dim in ((2, 64), (5, 64), (7, 32), (10, 32), (40, 16)):
        schema = Schema(
            categorical=[Categorical(f"c{i}") for i in range(columns)], tasks=[Task("y")]
        )
        wide = Config(LiRankConfig(schema, embedding=Embedding(dim=16, num_buckets=300)))
        ridge = tuning.trials(wide, set())[-1].config.model
        assert ridge.embedding.dim == dim
        kept = tuning.trials(wide, {"model.embedding.dim"})[-1]
        assert (kept.name, kept.config.model.embedding.dim) == ("linear ridge", 16)
    for key in ("table_optimizer", "table_lr", "table_l2"):  # they go together
        made = tuning.trials(config, {f"training.{key}"})
        assert [t.name for t in made] == names[:-2]
    monkeypatch.setattr(tuning, "ADAM_TRIAL_ROWS", rows)
    assert [t.name for t in tuning.trials(config, set())] == names
    monkeypatch.setattr(tuning, "ADAM_TRIAL_ROWS", rows - 1)
    assert [t.name for t in tuning.trials(config, set())] == names[:-2]
    config.model.embedding.enabled = False
    monkeypatch.setattr(tuning, "ADAM_TRIAL_ROWS", 10**9)
    assert "ridge" not in [t.name for t in tuning.trials(config, set())]


def test_when_trials_are_trained():
    config = config_for()
    assert tuning.wanted(config, True)
    assert not tuning.wanted(config, False)
    assert not tuning.wanted(config_for(max_steps=5), True)
    assert tuning.wanted(config_for(tune="on"), True)
    assert not tuning.wanted(config_for(tune="off"), True)
    with pytest.raises(ConfigError, match="no rows to validate on"):
        tuning.wanted(config_for(tune="on"), False)


@pytest.mark.parametrize("stop_at", [3, 12, 22])
def test_stopped_trials_go_on_bit_equal(data, tmp_path, monkeypatch, stop_at):
    config = config_for(epochs=2, checkpoint_every=2)
    whole, best = Tuner(config, set(), open_data(config, [data]), tmp_path / "a").run()
    steps = [0]

    def stop(trainer):
        steps[0] += 1
        if steps[0] == stop_at:
            raise Interrupted("stopped", 15)

    made = tuning.trainer_on

    def stopping(*args):
        trainer = made(*args)
        trainer.after_step = stop
        return trainer

    monkeypatch.setattr(tuning, "trainer_on", stopping)
    with pytest.raises(Interrupted, match=r"in trial .*--resume goes on from"):
        Tuner(config, set(), open_data(config, [data]), tmp_path / "b").run()
    monkeypatch.setattr(tuning, "trainer_on", made)
    again = Tuner(config, set(), open_data(config, [data]), tmp_path / "b")
    trainer, same = again.run()
    assert (same.name, same.best) == (best.name, best.best)
    ours, theirs = weights(trainer), weights(whole)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_trials_of_another_list_are_refused(data, tmp_path, monkeypatch):
    config = config_for(epochs=1)
    files = open_data(config, [data])
    Tuner(config, set(), files, tmp_path).run()
    monkeypatch.setitem(tuning.TRIALS, "light", {"training.table_lr": 0.5})
    with pytest.raises(DataError, match="trials of another list"):
        Tuner(config, set(), files, tmp_path).run()


def test_train_tunes_by_itself(data, tmp_path, capsys):
    out = tmp_path / "model"
    small = ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]", "--epochs", "2"]
    train = ["train", str(data), "--label", "click", "--output", str(out), *small]
    train += ["--set", "training.fisher_rows=0", "--set", "training.batch_size=64"]
    assert main(train) == 0
    report = json.loads((out / "report.json").read_text())
    assert [t["name"] for t in report["trials"]] == list(tuning.TRIALS)
    assert "Trials" in capsys.readouterr().out
    assert report["chosen"] in tuning.TRIALS
    config = load_model(out)[1]
    assert config == Config.load(out / "config.yaml")
    assert config.training.tune == "off"
    assert not (out / tuning.FOLDER).exists()
    assert (out / CHECKPOINT).exists()
    assert main([*train, "--resume"]) == 0  # done: nothing is trained again
    assert main([*train, "--overwrite", "--tune", "off"]) == 0
    assert "trials" not in json.loads((out / "report.json").read_text())


def test_trials_of_many_rows_see_a_sample(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "MAX_ROWS", 100)
    monkeypatch.setattr(tuning, "MAX_VALID", 20)
    config = config_for(epochs=2)
    files = open_data(config, [data])
    few = tuning.sampled(files)
    assert 60 <= few.rows <= 140
    assert 8 <= len(few.valid.rows) <= 32
    held = few.valid.rows.numbers
    assert files.train.split.is_valid(held).all()
    assert not files.train.split.is_valid(few.train.rows.numbers).any()

    out = tmp_path / "model"
    small = ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]", "--epochs", "2"]
    train = ["train", str(data), "--label", "click", "--output", str(out), *small]
    train += ["--set", "training.fisher_rows=0", "--set", "training.batch_size=64"]
    assert main(train) == 0
    assert f"a sample of {few.rows} rows" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    chosen = next(t for t in report["trials"] if t["name"] == report["chosen"])
    assert report["steps"] > chosen["steps"]  # all rows, in the end

    # Stopped while the best trial's settings see all rows, it goes on there.
    from lirank_ext.training import run

    made, stopped = run.trainer_on, tmp_path / "stopped"

    def stopping(*args, **options):
        trainer = made(*args, **options)

        def stop(t):
            t.signals.received = 15 * (t.progress.step == 3)

        trainer.after_step = stop
        return trainer

    monkeypatch.setattr(run, "trainer_on", stopping)
    train[train.index(str(out))] = str(stopped)
    assert main(train) != 0
    assert "--resume goes on from" in capsys.readouterr().err
    monkeypatch.setattr(run, "trainer_on", made)
    assert main([*train, "--resume"]) == 0
    ours, theirs = (load_model(folder)[0].state_dict() for folder in (out, stopped))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_worse_evaluation_goes_back_to_the_best_weights(data):
    config = config_for(epochs=8, patience=0)
    trainer = open_trainer(config, [data])
    back, restarted = trainer.average.restart, []

    def restart():
        now = trainer.model.state_dict()
        restarted.append(all(torch.equal(now[k], v) for k, v in trainer.best.items()))
        back()

    trainer.average.restart = restart
    trainer.fit()
    assert restarted
    assert all(restarted)


# Search


@pytest.fixture
def few(monkeypatch):
    """Optuna, and a space that a test can see through."""
    pytest.importorskip("optuna")
    space = {"model.mlp.dropout": (0.0, 0.6, False), "training.table_l2": (1e-8, 1e-4, True)}
    monkeypatch.setattr(search, "SPACE", space)
    return space


def test_a_search_with_adam_has_a_space_of_its_own(data, tmp_path):
    pytest.importorskip("optuna")
    config = config_for(tune="search")
    usual = Search(config, set(), open_data(config, [data]), tmp_path).space
    assert usual == search.SPACE
    config = config_for(tune="search", table_optimizer="adam")
    space = Search(config, {"model.mlp.dropout"}, open_data(config, [data]), tmp_path).space
    assert set(usual) - set(space) == {"training.table_start", "model.mlp.dropout"}
    assert {key: space[key] for key in search.ADAM_SPACE} == search.ADAM_SPACE
    assert space["training.lr"] == usual["training.lr"]


def test_a_search_keeps_the_best_and_goes_on_where_it_was_stopped(data, tmp_path, few, monkeypatch):
    config = config_for(epochs=1, tune="search", tune_trials=3, seed=1)

    def make(folder):
        return Search(config, set(), open_data(config, [data]), tmp_path / folder)

    whole = make("whole")
    trainer, best = whole.run()
    assert [t.name for t in whole.trials] == ["given", "search 1", "search 2", "search 3"]
    assert len({json.dumps(t.changes) for t in whole.trials}) == 4
    assert all(set(t.changes) == set(few) for t in whole.trials[1:])
    for trial in whole.trials[1:]:
        values = flat(trial.config.to_dict())
        assert {k: values[k] for k in few} == trial.changes
    first = whole.trials[0]
    better = [t for t in whole.trials if t.best > first.best + t.noise]
    assert best is max(better, key=lambda t: t.best, default=first)

    made, steps = tuning.trainer_on, [0]

    def stop(trainer):
        steps[0] += 1
        if steps[0] == 9:  # in the second trial
            raise Interrupted("stopped", 15)

    def stopping(*args):
        trainer = made(*args)
        trainer.after_step = stop
        return trainer

    monkeypatch.setattr(tuning, "trainer_on", stopping)
    with pytest.raises(Interrupted):
        make("cut").run()
    monkeypatch.setattr(tuning, "trainer_on", made)
    again = make("cut")
    resumed, same = again.run()
    assert [t.changes for t in again.trials] == [t.changes for t in whole.trials]
    assert (same.name, same.best) == (best.name, best.best)
    ours, theirs = weights(resumed), weights(trainer)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_search_ends_when_its_time_is_over(data, tmp_path, few):
    config = config_for(epochs=1, tune="search", tune_seconds=0.0)
    tuner = Search(config, set(), open_data(config, [data]), tmp_path)
    tuner.run()
    assert [t.name for t in tuner.trials] == ["given"]


def test_a_search_that_cannot_be_is_refused(data, tmp_path, few, capsys, monkeypatch):
    config = config_for(tune="search")
    with pytest.raises(ConfigError, match="every setting that it could search is given"):
        Search(config, set(few), None, tmp_path)
    train = ["train", str(data), "--label", "click", "--output", str(tmp_path / "o")]
    assert main([*train, "--tune-seconds", "5"]) == 2
    assert "goes with tune search" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([*train, "--tune", "search"]) == 2
    assert (
        f"needs optuna, which is not installed: {install_line('tune')}" in capsys.readouterr().err
    )


def test_train_searches(data, tmp_path, few, capsys):
    out = tmp_path / "model"
    train = ["train", str(data), "--label", "click", "--output", str(out), "--epochs", "1"]
    train += ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]"]
    train += ["--set", "training.batch_size=64", "--set", "training.fisher_rows=0"]
    train += ["--tune", "search", "--set", "training.tune_trials=2"]
    assert main(train) == 0
    assert "a search over 2 settings" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert [t["name"] for t in report["trials"]] == ["given", "search 1", "search 2"]
    assert load_model(out)[1].training.tune == "off"
    assert main([*train, "--resume"]) == 0
