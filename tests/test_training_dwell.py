"""A task "stayed long" from a column of times and the columns of its clusters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from lirank_ext.__main__ import main  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.loader import Split  # noqa: E402
from lirank_ext.models import ConfigError, Dwell, LiRankConfig, Task  # noqa: E402
from lirank_ext.nn import LongDwellLabels  # noqa: E402
from lirank_ext.training.defaults import for_files  # noqa: E402
from lirank_ext.training.incremental import (  # noqa: E402
    load_previous,
    save_increment,
    start_increment,
)
from lirank_ext.training.session import (  # noqa: E402
    dwell_of,
    load_model,
    open_data,
    open_loader,
    open_trainer,
    save_model,
    trainer_on,
)

ROWS = 900


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def write_times(path, seed=0, scale=1.0):
    """Times that depend on the kind of post and on the reader."""
    rng = np.random.default_rng(seed)
    kind, user = rng.choice(["text", "video"], ROWS), rng.integers(0, 9, ROWS)
    place = rng.integers(1, 3, ROWS)
    times = rng.exponential(np.where(kind == "video", 60.0, 10.0) * (1 + user % 3)) * scale
    rows = zip(kind, place, user, times.round(3), strict=True)
    lines = [f"{k},{p},u{u},{t}" for k, p, u, t in rows]
    path.write_text("\n".join(["kind,place,user,seconds", *lines]) + "\n")
    return path, kind, place, times.round(3)


def make_config(paths, window=1, **training):
    task = Task("long_dwell", "seconds", dwell=Dwell(["kind", "place"], 0.8, window, 10))
    small = {"embedding": {"dim": 4}, "mlp": {"dims": [8]}, "cross": {"rank": 4}}
    options = {"epochs": 1, "batch_size": 64, "prefetch": 0, "fisher_rows": 20, **training}
    return for_files(paths, [task], {"model": small, "training": options})


def read(config, paths, data) -> np.ndarray:
    loader = open_loader(config, paths, BadRows(), dwell=data.dwell)
    return np.concatenate([b.labels.numpy()[:, 0] for b in loader])


def test_labels_are_above_the_cluster_s_percentile(tmp_path):
    path, kind, place, times = write_times(tmp_path / "a.csv")
    config = make_config([path])
    assert "seconds" not in config.model.schema.columns  # the label is no feature
    labels = read(config, [path], open_data(config, [path]))
    trained = ~Split(0.1, seed=0).is_valid(np.arange(ROWS))
    for k in ("text", "video"):
        for p in (1, 2):
            cluster = (kind == k) & (place == p)
            threshold = np.quantile(times[cluster & trained], 0.8)
            assert np.array_equal(labels[cluster], times[cluster] > threshold)


def test_the_window_moves_from_training_to_training(tmp_path):
    one, _, _, first = write_times(tmp_path / "1.csv", 1)
    two, _, _, second = write_times(tmp_path / "2.csv", 2, scale=3.0)
    three, *_ = write_times(tmp_path / "3.csv", 3, scale=9.0)
    folders = [tmp_path / name for name in ("m1", "m2", "m3")]
    past = None
    for path, folder in zip((one, two, three), folders, strict=True):
        folder.mkdir()
        before = load_previous(past) if past else None
        config = before.config if before else make_config([path], window=2, valid=0.2)
        data = open_data(config, [path], before=before.model if before else None)
        trainer = trainer_on(data, config)
        if before:
            start_increment(trainer, before)
        trainer.fit()
        save_increment(trainer, folder)
        save_model(folder, trainer.model, config)
        past = folder
    trained = ~Split(0.2, seed=0).is_valid(np.arange(ROWS))
    both = np.concatenate([first[trained], second[trained]])
    found = dwell_of(load_model(folders[1])[0])["long_dwell"]
    assert found.threshold.item() == pytest.approx(np.quantile(both, 0.8))
    # The third day drops the first.
    last = dwell_of(load_model(folders[2])[0])["long_dwell"]
    assert last.kept_counts.tolist() == [trained.sum()] * 2
    assert last.threshold > 1.5 * found.threshold


def test_trials_and_resumed_trainings_have_the_same_thresholds(tmp_path):
    path, *_ = write_times(tmp_path / "a.csv")
    config = make_config([path], checkpoint_every=2, epochs=6)
    whole = open_trainer(config, [path])
    assert whole.fit().best > 0.55
    out = tmp_path / "out"
    out.mkdir()
    first = open_trainer(config, [path], output=out)
    first.after_step = lambda t: setattr(t.signals, "received", 15 if t.progress.step == 4 else 0)
    with pytest.raises(Exception, match="stopped after step 4"):
        first.fit()
    second = open_trainer(config, [path], output=out)
    second.resume()
    second.fit()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert "dwell.t_long_dwell.thresholds" in ours
    assert len(ours["dwell.t_long_dwell.thresholds"]) == 4
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_command(tmp_path, capsys):
    path, *_ = write_times(tmp_path / "a.csv")
    newer, kind, _, times = write_times(tmp_path / "b.csv", 5)
    out = tmp_path / "model"
    train = ["train", str(path), "--long-dwell", "seconds:kind", "--output", str(out)]
    train += ["--epochs", "1", "--tune", "off", "--set", "training.fisher_rows=0"]
    assert main([*train, "--set", "model.mlp.dims=[8]"]) == 0
    model, config = load_model(out)
    assert config.model.schema.tasks[0].dwell == Dwell(["kind"])
    assert main(["evaluate", str(out), str(newer), "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())["long_dwell"]
    # Newer rows are measured against the thresholds that the model was trained with.
    loader = open_loader(config, [newer], BadRows(), dwell=dwell_of(model))
    labels = torch.cat([b.labels[:, 0] for b in loader])
    assert 0.05 < labels.mean() < 0.2
    assert found["rows"] == ROWS
    for k in ("text", "video"):
        mine = torch.from_numpy(kind == k)
        long = times[kind == k][labels[mine].numpy() == 1].min()
        assert long > times[kind == k][labels[mine].numpy() == 0].max()
    capsys.readouterr()
    assert main([*train[:3], "seconds:kin", "--output", str(tmp_path / "x")]) == 2
    assert "did you mean 'kind'" in capsys.readouterr().err
    path.write_text(path.read_text() + "text,1,u1,-3\n")
    assert main([*train, "--overwrite"]) == 2
    assert "a.csv:902: the dwell time 'seconds' is -3" in capsys.readouterr().err
    assert main([*train, "--overwrite", "--skip-bad-rows"]) == 0
    assert "1 broken row was skipped" in capsys.readouterr().err


def test_thresholds_are_those_of_the_module(tmp_path):
    path, kind, place, times = write_times(tmp_path / "a.csv")
    config = make_config([path], valid=0.0)
    data = open_data(config, [path])
    labels = LongDwellLabels(0.8, 2, 1, 10)
    columns = torch.stack([torch.from_numpy(kind == "video").long(), torch.from_numpy(place)], 1)
    labels.fit(torch.from_numpy(times), columns)
    wanted = labels.label(torch.from_numpy(times), columns)
    assert np.array_equal(read(config, [path], data), wanted.numpy())


def test_configurations_name_their_mistakes():
    with pytest.raises(ConfigError, match="either positive or dwell"):
        Task("t", "c", "yes", dwell=Dwell())
    with pytest.raises(ConfigError, match=r"quantile: wanted a number in \(0, 1\)"):
        Dwell(quantile=1.0)
    data = {"schema": {"tasks": [{"name": "t", "dwell": {"clusters": ["a"], "window": 3}}]}}
    config = LiRankConfig.from_dict(data)
    assert config.schema.tasks[0].dwell == Dwell(["a"], window=3)
    assert LiRankConfig.from_dict(config.to_dict()) == config
