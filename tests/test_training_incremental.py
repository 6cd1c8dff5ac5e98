"""Increments: the weighted start, the penalty, and what one training leaves for the next."""

from __future__ import annotations

import dataclasses

import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import Killed, make_config, weights, write_csv  # noqa: E402

from lirank_ext.__main__ import main  # noqa: E402
from lirank_ext.training import checkpoint, incremental  # noqa: E402
from lirank_ext.training.checkpoint import CheckpointError  # noqa: E402
from lirank_ext.training.defaults import TABLE_LR  # noqa: E402
from lirank_ext.training.incremental import (  # noqa: E402
    load_previous,
    save_increment,
    start_increment,
)
from lirank_ext.training.session import load_model, open_trainer, save_model  # noqa: E402
from lirank_ext.training.settings import Config  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def finished(folder, path, past=None, cold=None, **training):
    """A training, saved with what an increment needs."""
    folder.mkdir()
    training = {"epochs": 1, "fisher_rows": 40, **training}
    trainer = open_trainer(make_config(**training), [path])
    if past is not None:
        start_increment(trainer, load_previous(past), load_previous(cold) if cold else None)
    trainer.fit()
    save_increment(trainer, folder)
    save_model(folder, trainer.model, trainer.config)
    return trainer


@pytest.fixture
def days(tmp_path):
    """Three days of clicks, and the folder of the model of the first."""
    paths = [write_csv(tmp_path / f"day{i}.csv", 200, i) for i in range(3)]
    finished(tmp_path / "cold", paths[0], epochs=2)
    return tmp_path / "cold", paths


def test_no_forgetting_is_plain_fine_tuning(days, tmp_path):
    cold, paths = days
    ours = finished(tmp_path / "a", paths[1], cold, forgetting=0.0)
    plain = open_trainer(make_config(epochs=1, fisher_rows=40), [paths[1]])
    past = load_previous(cold)
    plain.model.load_state_dict(past.model.state_dict())
    for i, p in enumerate(plain.model.table_parameters()):
        plain.optimizers[1].state[p]["sum"].copy_(past.sums[str(i)])
    plain.fit()
    left, right = weights(ours), weights(plain)
    assert all(torch.equal(left[k], right[k]) for k in right)


def test_a_strong_pull_keeps_the_weights(days, tmp_path):
    cold, paths = days
    options = {"weight_decay": 0.0, "epochs": 10, "valid": 0.0}
    far = finished(tmp_path / "a", paths[1], cold, forgetting=0.0, **options)
    near = finished(tmp_path / "b", paths[1], cold, forgetting=1e6, **options)
    tables = {id(p) for p in near.model.table_parameters()}
    anchors = load_previous(cold).anchors["last_fisher"]
    sizes = {n: p.numel() for n, p in near.model.named_parameters() if id(p) not in tables}
    fisher = dict(zip(sizes, anchors.split(list(sizes.values())), strict=True))
    before = dict(load_model(cold)[0].named_parameters())

    def moved(trainer):
        """Of the weights that the old data do tell something about."""
        now = dict(trainer.model.named_parameters())
        gaps = [(now[n] - before[n]).abs().flatten()[fisher[n] > 1e-6] for n in sizes]
        return torch.cat(gaps).mean()

    assert moved(near) < 0.2 * moved(far)


def test_the_start_is_weighted(days, tmp_path):
    cold, paths = days
    finished(tmp_path / "one", paths[1], cold)
    config = make_config(epochs=1, cold_weight=0.25)
    trainer = open_trainer(config, [paths[2]])
    start_increment(trainer, load_previous(tmp_path / "one"), load_previous(cold))
    first = dict(load_model(cold)[0].named_parameters())
    last = dict(load_model(tmp_path / "one")[0].named_parameters())
    assert any(not torch.equal(first[n], last[n]) for n in first)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p, 0.25 * first[name] + 0.75 * last[name])
    with pytest.raises(CheckpointError, match="name the cold start with --cold"):
        start_increment(open_trainer(config, [paths[2]]), load_previous(tmp_path / "one"))


def test_the_penalty_is_the_formula(days, tmp_path):
    cold, paths = days
    finished(tmp_path / "one", paths[1], cold)
    past, start = load_previous(tmp_path / "one"), load_previous(cold)
    config = make_config(epochs=1, cold_weight=0.25, forgetting=3.0)
    trainer = open_trainer(config, [paths[2]])
    start_increment(trainer, past, start)
    tables = {id(p) for p in trainer.model.table_parameters()}
    dense = [p for p in trainer.model.parameters() if id(p) not in tables]
    w = torch.cat([p.detach().flatten() for p in dense])
    cold_part = start.anchors["last_fisher"] * (w - start.anchors["last_weights"]).square()
    last_part = past.anchors["last_fisher"] * (w - past.anchors["last_weights"]).square()
    wanted = 3.0 / 2 * (0.25 * cold_part.sum() + 0.75 * last_part.sum())
    assert wanted > 0
    torch.testing.assert_close(trainer.penalty(trainer.model), wanted)


def test_anchors_are_saved_and_loaded(days):
    cold, _ = days
    past = load_previous(cold)
    tables = {id(p) for p in past.model.table_parameters()}
    dense = [p for p in past.model.parameters() if id(p) not in tables]
    w = torch.cat([p.detach().flatten() for p in dense])
    assert torch.equal(past.anchors["last_weights"], w)
    assert torch.equal(past.anchors["cold_weights"], w)
    assert (past.anchors["last_fisher"] >= 0).all()
    assert past.anchors["last_fisher"].sum() > 0
    file = cold / incremental.FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        load_previous(cold)
    file.unlink()
    with pytest.raises(CheckpointError, match="fisher_rows above 0"):
        load_previous(cold)


def test_tables_of_adam_go_on_with_adagrad(days, tmp_path, capsys):
    _, paths = days
    adam = {"table_optimizer": "adam", "table_lr": 0.01, "table_l2": 0.05, "table_start": 10.0}
    day = tmp_path / "adam"
    trainer = finished(day, paths[0], **adam)
    sums = load_previous(day).sums
    start = 10.0 / trainer.settings.batch_size**2
    for i, found in enumerate(trainer.optimizers[1].rowwise_sums()):
        assert torch.equal(sums[str(i)], found + start)
        assert found.max() > 0
    with pytest.raises(CheckpointError, match="an increment trains its tables with adagrad"):
        start_increment(open_trainer(make_config(**adam), [paths[1]]), load_previous(day))
    # The command line changes the optimizer, and rows of ids that are not there stay.
    out, options = tmp_path / "next", ["--set", "training.fisher_rows=0", "--epochs", "1"]
    (tmp_path / "few.csv").write_text("".join(paths[1].open().readlines()[:4]))
    few = [str(tmp_path / "few.csv"), "--valid", str(paths[2])]
    assert main(["train", *few, "--from", str(day), "--output", str(out), *options]) == 0
    model, config = load_model(out)
    assert config.training.table_optimizer == "adagrad"
    assert (config.training.table_lr, config.training.table_l2) == (TABLE_LR, 0.0)
    pairs = zip(model.table_parameters(), load_model(day)[0].table_parameters(), strict=True)
    same = torch.cat([(a == b).all(1) for a, b in pairs])
    assert 0 < same.sum() < len(same)
    capsys.readouterr()
    options += ["--set", "training.table_optimizer=adam", "--overwrite"]
    assert main(["train", *few, "--from", str(day), "--output", str(out), *options]) != 0
    assert "training.table_optimizer: an increment trains" in capsys.readouterr().err


def test_another_model_is_refused(days):
    cold, paths = days
    config = make_config(epochs=1)
    cross = dataclasses.replace(config.model.cross, rank=3)
    config.model = dataclasses.replace(config.model, cross=cross)
    with pytest.raises(CheckpointError, match=r"model\.cross\.rank is 4 there and 3 here"):
        start_increment(open_trainer(config, [paths[1]]), load_previous(cold))


def test_a_killed_increment_goes_on_bit_equal(days, tmp_path):
    cold, paths = days
    config = make_config(epochs=2, checkpoint_every=2, forgetting=10.0)

    def fresh(output=None):
        trainer = open_trainer(config, [paths[1]], output=output)
        start_increment(trainer, load_previous(cold))
        return trainer

    whole = fresh()
    whole.fit()
    out = tmp_path / "out"
    out.mkdir()
    first = fresh(out)

    def kill(trainer):
        if trainer.progress.step == 3:
            raise Killed

    first.after_step = kill
    with pytest.raises(Killed):
        first.fit()
    second = fresh(out)
    with torch.no_grad():  # the anchors come from the checkpoint
        second.penalty.last_weights.zero_()
    second.resume()
    second.fit()
    left, right = weights(second), weights(whole)
    assert all(torch.equal(left[k], right[k]) for k in right)


def test_train_from_a_model(days, tmp_path, capsys):
    cold, paths = days
    one, two = tmp_path / "one", tmp_path / "two"

    def run(*args) -> int:
        return main(["train", *map(str, args)])

    options = ["--epochs", "1", "--set", "training.fisher_rows=20"]
    assert run(paths[1], "--from", cold, "--output", one, *options, "--forgetting", "5") == 0
    more = ["--cold", cold, "--cold-weight", "0.5", "--label", "click"]
    assert run(paths[2], "--from", one, "--output", two, *options, *more) == 0
    training = load_model(two)[1].training
    assert (training.forgetting, training.cold_weight, training.epochs) == (5.0, 0.5, 1)
    assert (training.start_from, training.cold) == (str(one), str(cold))
    content = checkpoint.load(two / incremental.FILE)[1]
    assert content["rows"] == 20
    assert run(paths[2], "--output", two, "--resume") == 0
    capsys.readouterr()

    def refused(*args) -> str:
        assert run(paths[1], "--output", tmp_path / "x", *args) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text

    assert "model.cross.rank is 4 there and 9" in refused(
        "--from", cold, "--set", "model.cross.rank=9"
    )
    assert "goes with --from" in refused("--label", "click", "--forgetting", "2")
    assert "predicts click" in refused("--from", cold, "--label", "age")
    assert "--preset" in refused("--from", cold, "--preset", "feed")
    assert "no such file" in refused("--from", tmp_path / "none")
    assert "--cold" in refused("--from", cold, "--cold-weight", "0.5")
    assert "cold_weight: wanted a share" in refused("--from", cold, "--cold-weight", "2")
    assert main(["train", str(paths[1]), "--from", str(cold), "--output", str(cold)]) == 2
    assert "must be another folder" in capsys.readouterr().err
    # A configuration that names its start is an increment as well.
    three = tmp_path / "three"
    assert run(paths[2], "--config", two / "config.yaml", "--output", three) == 0
    ours, theirs = load_model(three)[0].state_dict(), load_model(two)[0].state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert Config.load(two / "config.yaml").training.tune == "off"
