from __future__ import annotations

import dataclasses
import gzip
import math
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lirank_ext.data.errors import DataError
from lirank_ext.models import Categorical, ConfigError, History, LiRankConfig, Schema, Task
from lirank_ext.training import Config, RowwiseAdagrad, Settings, TableAdam, learning_rate

pa = pytest.importorskip("pyarrow")
pytest.importorskip("safetensors")
parquet = pytest.importorskip("pyarrow.parquet")
csv = pytest.importorskip("pyarrow.csv")
pytest.importorskip("sklearn")

from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.columns import hash_ids  # noqa: E402
from lirank_ext.data.features import Converter  # noqa: E402
from lirank_ext.data.loader import Loader, Position, Split, ahead  # noqa: E402
from lirank_ext.data.reading import Reading  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402
from lirank_ext.library import files  # noqa: E402
from lirank_ext.training import checkpoint, optimizers  # noqa: E402
from lirank_ext.training import trainer as trainer_file  # noqa: E402
from lirank_ext.training.calibrate import calibrate  # noqa: E402
from lirank_ext.training.checkpoint import CheckpointError  # noqa: E402
from lirank_ext.training.defaults import ADAM_LR, TABLE_LR, for_files  # noqa: E402
from lirank_ext.training.metrics import evaluate, measure  # noqa: E402
from lirank_ext.training.session import load_model, open_trainer, save_model  # noqa: E402
from lirank_ext.training.trainer import CHECKPOINT  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def write_csv(path, rows=600, seed=0):
    """Clicks that depend on a user and an item."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 20, rows), rng.integers(0, 30, rows)
    age = rng.normal(40, 10, rows).round(1)
    logit = (user % 4 - 1.5) + (item % 3 - 1.0) + 0.05 * (age - 40)
    click = rng.random(rows) < 1 / (1 + np.exp(-logit))
    past = [" ".join(f"i{j}" for j in rng.integers(0, 30, rng.integers(0, 4))) for _ in range(rows)]
    lines = ["user,item,age,past,click"]
    columns = zip(user, item, age, past, click, strict=True)
    lines += [f"u{u},i{i},{a},{p},{int(c)}" for u, i, a, p, c in columns]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_config(**training) -> Config:
    schema = Schema(
        numeric=["age"],
        categorical=[Categorical("user"), Categorical("item")],
        history=[History("past", "item")],
        tasks=[Task("click")],
    )
    model = LiRankConfig(schema).to_dict()
    model["embedding"].update(dim=4, num_buckets=300, num_remainders=3, dropout=0.1)
    model["mlp"].update(dims=[8], batch_norm=True, dropout=0.2)
    model["cross"].update(rank=4)
    model["history"].update(num_layers=1)
    options = {"batch_size": 64, "epochs": 2, "prefetch": 0, "warmup": 0.1, **training}
    return Config.from_dict({"model": model, "training": options})


def weights(trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


# Optimizer and schedule


def take_steps(optimizer, p, grads, sparse):
    for g in grads:
        rows = torch.tensor([4, 0, 1, 3, 4])
        half = g[rows].clone()
        half[[0, 4]] /= 2  # row 4 comes twice
        sparse_grad = torch.sparse_coo_tensor(rows[None], half, (5, 3), check_invariants=True)
        p.grad = sparse_grad if sparse else g.clone()
        optimizer.step()


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_rowwise_adagrad_is_its_formula(l2):
    start = torch.randn(5, 3)
    grads = [torch.randn(5, 3) for _ in range(3)]
    for g in grads:
        g[2] = 0  # never touched
    w, s = start.double(), torch.zeros(5, dtype=torch.float64)
    for g in grads:
        g = g.double()
        for i in (0, 1, 3, 4):
            step = g[i] + l2 * w[i]
            s[i] += step.square().mean()
            w[i] = w[i] - 0.1 * step / (s[i].sqrt() + 1e-8)
    for sparse in (False, True):
        p = torch.nn.Parameter(start.clone())
        optimizer = RowwiseAdagrad([p], lr=0.1, l2=l2)
        take_steps(optimizer, p, grads, sparse)
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)
        assert torch.equal(p[2], start[2])


def test_tables_that_move_in_the_backward_pass_end_where_steps_take_them(tmp_path, monkeypatch):
    """The table of the items has a history, which reads it too: it keeps its own steps."""
    path = write_csv(tmp_path / "a.csv", 300)
    given = make_config(table_l2=0.01).to_dict()
    given["model"]["schema"]["categorical"][0]["table"] = "users"
    given["model"]["mlp"]["batch_norm"] = False  # biases before it have rounding alone as gradients
    ended, moved = [], []
    for fuses in (True, False):
        if not fuses:
            monkeypatch.setattr(trainer_file, "moving_in_backward", lambda *_: nullcontext())
        trainer = open_trainer(Config.from_dict(given), [path])
        trainer.after_step = lambda t: moved.append(
            {k for k, m in t.model.tables.items() if m.quotient_b.grad is None}
        )
        trainer.fit()
        ended.append((weights(trainer), checkpoint.optimizer_tensors(trainer.optimizers[1])))
        assert not any(m._fused for m in trainer.model.tables.values())
    half = len(moved) // 2
    assert moved[:half] == [{"t_users"}] * half and not any(moved[half:])
    for wanted, got in zip(*ended, strict=True):
        assert wanted.keys() == got.keys()
        for name in wanted:
            # Adam turns the rounding of a small gradient of the dense part into a step.
            torch.testing.assert_close(wanted[name], got[name], rtol=1e-5, atol=1e-4)
    start = open_trainer(Config.from_dict(given), [path]).model.state_dict()
    name = "tables.t_users.quotient_b"
    assert (ended[0][0][name] - start[name]).abs().max() > 0.01


def test_rowwise_adagrad_refuses_vectors():
    with pytest.raises(ValueError, match=r"tables \(N, D\), got \(3,\)"):
        RowwiseAdagrad([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_table_adam_is_its_formula(l2):
    start = torch.randn(5, 3)
    grads = [torch.randn(5, 3) for _ in range(4)]
    for g in grads:
        g[2] = 0  # only the penalty moves it
    w = start.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(grads, 1):
        step = g.double() + l2 * w
        m, v = 0.9 * m + 0.1 * step, 0.999 * v + 0.001 * step.square()
        w = w - 0.1 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    for sparse in (False, True):
        p = torch.nn.Parameter(start.clone())
        optimizer = TableAdam([p], lr=0.1, l2=l2)
        take_steps(optimizer, p, grads, sparse)
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)
        assert torch.equal(p[2], start[2]) == (l2 == 0)
        sums = v.mean(1) * 4 / (1 - 0.999**4)
        torch.testing.assert_close(optimizer.rowwise_sums()[0], sums.float())


def test_table_adam_refuses_large_tables(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'l2': wanted 0 or more, got -1"):
        TableAdam([torch.zeros(3, 2)], l2=-1)
    monkeypatch.setattr(optimizers, "ADAM_ROWS", 100)
    TableAdam([torch.zeros(60, 2), torch.zeros(40, 2)])
    with pytest.raises(ValueError, match=r"at most 100 rows in all, .* got 101"):
        TableAdam([torch.zeros(60, 2), torch.zeros(41, 2)])
    path = write_csv(tmp_path / "a.csv", 200)
    open_trainer(make_config(), [path])
    with pytest.raises(ConfigError, match=r"may have 100 rows in all, .*: take adagrad"):
        open_trainer(make_config(table_optimizer="adam"), [path])


def test_the_optimizer_of_the_tables_is_a_setting(tmp_path):
    path = write_csv(tmp_path / "a.csv", 200)
    with pytest.raises(ConfigError, match="table_optimizer: wanted "):
        make_config(table_optimizer="sgd")
    assert isinstance(open_trainer(make_config(), [path]).optimizers[1], RowwiseAdagrad)
    options = {"table_optimizer": "adam", "table_lr": 0.01, "table_l2": 0.2}
    group = open_trainer(make_config(**options), [path]).optimizers[1].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.2)
    # The penalty holds rows that no id has: they shrink.
    trainer = open_trainer(make_config(**options, epochs=4), [path])
    before = [p.detach().clone() for p in trainer.model.table_parameters()]
    trainer.fit()
    pairs = zip(trainer.model.table_parameters(), before, strict=True)
    moved = [(p != b).any(1).all() for p, b in pairs]
    assert all(moved)
    # Where Adam is asked for, the rate of ``train`` is Adam's.
    given = {"training": {"table_optimizer": "adam"}}
    assert for_files([path], ["click"], given).training.table_lr == ADAM_LR
    assert for_files([path], ["click"]).training.table_lr == TABLE_LR
    given["training"]["table_lr"] = 0.02
    assert for_files([path], ["click"], given).training.table_lr == 0.02


def test_learning_rate_warms_up_and_falls():
    half = [learning_rate(i, 100, 0.5, "cosine") for i in range(100)]
    assert half[0] == 1 / 50
    assert half[49] == 1
    assert half[50] == 1
    assert half[75] == pytest.approx(0.5)
    assert [learning_rate(i, 100, 0.05, "linear") for i in (4, 5, 52)] == [1, 1, 1 - 47 / 95]
    assert learning_rate(99, 100, 0.05, "constant") == 1


# Reading


def loader(path, config, batch_size=64, **options) -> Loader:
    broken = options.pop("broken", BadRows())
    converter = Converter(config.model.schema, broken)
    source = Source([path] if not isinstance(path, list) else path, converter.columns, broken)
    return Loader(source, converter, batch_size, prefetch=0, **options)


def ids(*named: str) -> torch.Tensor:
    """The ids of values written ``column=value``."""
    pairs = [name.split("=") for name in named]
    return torch.tensor([hash_ids(column, [value])[0] for column, value in pairs])


def test_features_are_hashes_of_column_and_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,age,past,click\nu1,i2,3.5,i7 i2,1\n,i3,,,0\n")
    batch = next(iter(loader(path, make_config())))
    wanted = ids("user=u1", "item=i2", "user=", "item=i3")
    assert torch.equal(batch.features["ids/ids"], wanted)
    assert torch.equal(batch.features["offsets/ids"], torch.arange(4))
    items = batch.features["history/past/items"]
    assert torch.equal(items[0], ids("item=i7", "item=i2"))
    assert batch.features["history/past/lengths"].tolist() == [2, 0]
    assert batch.features["numeric"][0].item() == 3.5
    assert batch.features["numeric"][1].isnan().all()
    assert batch.labels.tolist() == [[1], [0]]


def test_csv_gzip_and_parquet_give_the_same(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    table = csv.read_csv(path)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    made = [list(loader(tmp_path / n, make_config())) for n in ("a.csv", "a.csv.gz", "a.parquet")]
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            for key, value in a.features.items():
                assert torch.equal(value.nan_to_num(-1), b.features[key].nan_to_num(-1)), key
            assert torch.equal(a.labels, b.labels)


def test_lists_bags_and_bins(tmp_path):
    genres = pa.array([["a", "b"], [], None])
    table = pa.table({"genres": genres, "tags": ["x|y", "", "x||"], "n": [1, 5, 9], "y": [0, 1, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    schema = Schema(
        categorical=[
            Categorical("genres"),
            Categorical("tags", separator="|"),
            Categorical("n", edges=[2.0, 6.0]),
        ],
        tasks=[Task("y")],
    )
    batch = next(iter(loader(tmp_path / "a.parquet", Config(LiRankConfig(schema)))))
    names = ["genres=a", "genres=b", "tags=x", "tags=y", "n=bin 0", "n=bin 1", "tags=x", "n=bin 2"]
    assert torch.equal(batch.features["ids/ids"], ids(*names))
    assert batch.features["offsets/ids"].tolist() == [0, 2, 4, 5, 5, 5, 6, 6, 7]


def test_oldest_first_histories_are_turned_and_cut(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("item,past,click\ni,a b c,1\nj,,0\nk,d,1\n")
    schema = Schema(
        categorical=[Categorical("item")],
        history=[History("past", "item", newest_first=False)],
        tasks=[Task("click")],
    )
    source = Source([path], ["item", "past", "click"])
    converter = Converter(schema, BadRows(), max_len=2)
    batch = next(iter(Loader(source, converter, 8, prefetch=0)))
    items = batch.features["history/past/items"]
    assert torch.equal(items[0], ids("item=c", "item=b"))
    assert items[2, 0] == ids("item=d")[0]


def test_blocks_hold_every_row_once(tmp_path):
    paths = [write_csv(tmp_path / f"{i}.csv", 150 + i, i) for i in range(3)]
    for block in (7, 64, 100, 1000):
        source = Source(paths, ["click"])
        numbers = [
            c.first + i for b in source.blocks(block) for c in b for i in range(c.table.num_rows)
        ]
        assert numbers == list(range(453))
        later = next(source.blocks(block, 2), None)
        assert (later is None) == (2 * block >= 453)
        assert later is None or later[0].first == 2 * block
    assert source.count() == 453


@pytest.mark.parametrize("block", [128, 10_000])
def test_any_position_is_reached_again(tmp_path, block):
    path = write_csv(tmp_path / "a.csv")
    make = {"block_rows": block, "shuffle": True, "seed": 3}
    whole = list(loader(path, make_config(), **make).epoch(Position(1)))
    for i in (0, 2, len(whole) - 2):
        rest = list(loader(path, make_config(), **make).epoch(whole[i][0]))
        assert len(rest) == len(whole) - i - 1
        for (_, a), (_, b) in zip(whole[i + 1 :], rest, strict=True):
            assert torch.equal(a.features["ids/ids"], b.features["ids/ids"])
    other = list(loader(path, make_config(), **make).epoch(Position(2)))
    assert not torch.equal(other[0][1].features["ids/ids"], whole[0][1].features["ids/ids"])


def test_split_parts_rows_for_any_block():
    numbers = np.arange(20_000)
    valid = Split(0.1, seed=1).is_valid(numbers)
    assert 0.09 < valid.mean() < 0.11
    assert np.array_equal(Split(0.1, seed=1).is_valid(numbers[500:]), valid[500:])
    assert not np.array_equal(Split(0.1, seed=2).is_valid(numbers), valid)
    assert Split(0.25, True, total=8).is_valid(np.arange(8)).tolist() == [False] * 6 + [True] * 2


def test_prefetch_passes_items_errors_and_stops():
    def numbers():
        yield 1
        raise DataError("broken")

    items = ahead(numbers(), 2)
    assert next(items) == 1
    with pytest.raises(DataError, match="broken"):
        next(items)
    endless = ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()


HELD = """
import builtins, torch
from lirank_ext.data.loader import ahead
products = (torch.ones(200, 200) @ torch.ones(200, 200) for _ in iter(int, 1))
builtins.held = ahead(products, 1_000_000)
next(builtins.held)
"""


def test_a_process_may_end_while_rows_are_made_ahead():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u,i,3,,1\nu,i,x,,0\n", r"a\.csv:3: column 'age' holds 'x', where a number was wanted"),
        ("u,i,3,,1\nu,i,3,,2\n", r"a\.csv:3: the label 'click' is '2', where 0 or 1 was wanted"),
        ("u,i,3,,\n", r"a\.csv:2: the label 'click' is missing"),
        ("u,i,3,,1\nu,i,3\n", r"a\.csv:3: 3 fields, where the header has 5"),
    ],
)
def test_broken_rows_are_named_or_skipped(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text("user,item,age,past,click\n" + text + "good,i,3,,1\n")
    with pytest.raises(DataError, match=message):
        list(loader(path, make_config()))
    broken = BadRows(skip=True)
    reading = loader(path, make_config(), broken=broken)
    for _ in range(2):  # counted once, however often it is read
        rows = sum(len(b) for b in reading)
    assert rows == text.count("\n")
    assert broken.count == 1
    assert "1 broken row was skipped" in broken.summary()


def test_lines_are_right_behind_skipped_ones(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('user,item,age,past,click\nu,i\n"a\nb",i,1,,1\nu,i,x,,1\n')
    broken = BadRows(skip=True)
    assert sum(len(b) for b in loader(path, make_config(), broken=broken)) == 1
    assert any(":5: column 'age'" in e for e in broken.examples)


def test_unknown_columns_and_files(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no column 'usr'; did you mean 'user'\?"):
        Source([path], ["usr"])
    with pytest.raises(DataError, match="no such file"):
        Source([tmp_path / "b.csv"], [])
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(DataError, match="empty file"):
        Source([tmp_path / "e.csv"], [])
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Source([tmp_path / "p.parquet"], [])
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="'a' is there more than once"):
        Source([tmp_path / "t.csv"], [])


def test_columns_are_inferred(tmp_path):
    rng = np.random.default_rng(0)
    n = 2000
    columns = {
        "city": [f"c{i % 9}" for i in range(n)],
        "user_id": [i % 700 for i in range(n)],
        "item": [i % 400 for i in range(n)],
        "hour": [i % 24 for i in range(n)],
        "price": np.exp(rng.normal(0, 3, n)).round(4),
        "y": [i % 2 for i in range(n)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    config = for_files([tmp_path / "a.parquet"], ["y"])
    schema = config.model.schema
    assert schema.numeric == ["hour", "price"]
    assert schema.log == ["price"]
    kinds = {c.name: bool(c.edges) for c in schema.categorical}
    assert kinds == {"city": False, "user_id": False, "item": False, "hour": False, "price": True}
    table = config.model.embedding.tables["ids"]
    assert table.num_buckets >= 4 * (9 + 700 + 400 + 24)
    given = {"training": {"epochs": 3}, "model": {"cross": {"rank": 7}}}
    reading = Reading(categorical=["price"])
    changed = for_files([tmp_path / "a.parquet"], ["y"], given, reading=reading)
    assert changed.model.cross.rank == 7
    assert changed.training.epochs == 3
    assert changed.model.schema.numeric == ["hour"]


def test_numbers_with_a_zero_in_front_are_names(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{i % 2},{i * 37 % 90000 + 1000:05d},{i}.5" for i in range(300)]
    path.write_text("\n".join(["y,zip,amount", *lines, "1,50265-2850,0.5"]) + "\n")
    schema = for_files([path], ["y"]).model.schema
    assert [c.name for c in schema.categorical if not c.edges] == ["zip"]
    assert schema.numeric == ["amount"]


# Training


def test_training_learns_and_stops_early(tmp_path):
    path = write_csv(tmp_path / "a.csv", 1500)
    config = make_config(epochs=30, patience=2, valid=0.2, lr=3e-3, table_lr=0.1)
    trainer = open_trainer(config, [path])
    progress = trainer.fit()
    assert progress.best > 0.65
    assert progress.position.epoch < 30
    assert progress.worse == 2
    metrics = evaluate(trainer.model, trainer.valid_loader)
    assert metrics["click"].auc == progress.best  # the best weights, not the last


def test_max_steps_and_evaluations(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    config = make_config(max_steps=7, evaluate_every=3, patience=0, epochs=50)
    progress = open_trainer(config, [path]).fit()
    assert progress.step == 7
    assert [e["step"] for e in progress.evaluations] == [3, 6, 7]


class Killed(Exception):
    pass


@pytest.mark.parametrize("tables", ["adagrad", "adam"])
@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("kill_at", [1, 8, 9, 12, 18])
def test_killed_and_resumed_is_bit_equal(tmp_path, kill_at, prefetch, tables):
    path = write_csv(tmp_path / "a.csv")
    options = {"checkpoint_every": 4, "shuffle_rows": 256, "prefetch": prefetch}
    if tables == "adam":
        options |= {"table_optimizer": "adam", "table_lr": 0.01, "table_l2": 0.05, "ema": 0.9}
    config = make_config(**options)
    whole = open_trainer(config, [path])
    whole.fit()
    out = tmp_path / "out"
    out.mkdir()
    first = open_trainer(config, [path], output=out)

    def kill(trainer):
        if trainer.progress.step == kill_at:
            raise Killed

    first.after_step = kill
    with pytest.raises(Killed):
        first.fit()
    torch.manual_seed(99)
    second = open_trainer(config, [path], output=out)
    if (out / CHECKPOINT).exists():
        second.resume()
        assert second.progress.step < kill_at
    assert second.fit().evaluations == whole.progress.evaluations
    ours, theirs = weights(second), weights(whole)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    for a, b in zip(second.optimizers, whole.optimizers, strict=True):
        states = map(checkpoint.optimizer_tensors, (a, b))
        left, right = states
        assert all(torch.equal(left[k], right[k]) for k in right)


def test_checkpoints_of_others_are_refused(tmp_path):
    path, out = write_csv(tmp_path / "a.csv"), tmp_path / "out"
    out.mkdir()
    config = make_config(max_steps=3)
    open_trainer(config, [path], output=out).fit()
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, lr=0.5))
    with pytest.raises(CheckpointError, match=r"training\.lr was 0\.001, now it is 0\.5"):
        open_trainer(other, [path], output=out).resume()
    write_csv(path, 700)
    with pytest.raises(CheckpointError, match="another data"):
        open_trainer(config, [path], output=out).resume()


def test_damaged_checkpoints_are_refused(tmp_path):
    path, out = write_csv(tmp_path / "a.csv"), tmp_path / "out"
    out.mkdir()
    config = make_config(max_steps=3)
    open_trainer(config, [path], output=out).fit()
    file = out / CHECKPOINT
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[:-10], whole[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            open_trainer(config, [path], output=out).resume()
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        open_trainer(config, [path], output=out).resume()


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    checkpoint.save(file, {"a": torch.ones(3)}, {"n": 1})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(file, {"a": torch.zeros(3)}, {"n": 2})
    tensors, content = checkpoint.load(file)
    assert torch.equal(tensors["a"], torch.ones(3))
    assert content == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_models_are_saved_and_loaded(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    config = make_config(max_steps=3)
    trainer = open_trainer(config, [path], output=tmp_path)
    trainer.fit()
    save_model(tmp_path, trainer.model, config)
    model, same = load_model(tmp_path)
    assert same == config
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in trainer.model.state_dict().items())
    with pytest.raises(CheckpointError, match="a checkpoint of a training"):
        load_model(tmp_path / CHECKPOINT)


def test_loss_that_is_not_finite_stops(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    trainer = open_trainer(make_config(), [path])
    with torch.no_grad():
        trainer.dense[0].fill_(math.nan)
    with pytest.raises(DataError, match="not finite at step 1"):
        trainer.fit()


def test_one_class_to_validate_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,age,past,click\n" + "u,i,1,,0\n" * 200)
    with pytest.raises(DataError, match="all have the same label 'click'"):
        open_trainer(make_config(), [path]).fit()
    open_trainer(make_config(monitor="log_loss"), [path]).fit()


def test_calibration_mends_the_level(tmp_path):
    path = write_csv(tmp_path / "a.csv", 1000)
    config = make_config(epochs=2)
    trainer = open_trainer(config, [path])
    trainer.fit()
    model, rows = trainer.model, trainer.valid_loader
    with torch.no_grad():
        model.calibration[0].bias.add_(1.0)
    before = evaluate(model, rows)["click"]
    kept = model.dense_parameters()[0].clone()
    calibrate(model, rows)
    after = evaluate(model, rows)["click"]
    assert after.log_loss < before.log_loss
    assert abs(after.observed_to_expected - 1) < 0.05 < abs(before.observed_to_expected - 1)
    assert torch.equal(kept, model.dense_parameters()[0])


def test_metrics_are_their_formulas():
    logits, labels = np.array([0.0, 2.0, -1.0, 2.0]), np.array([0.0, 1.0, 0.0, 0.0])
    m = measure(logits, labels)
    p = 1 / (1 + np.exp(-logits))
    wanted = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert m.auc == pytest.approx((1 + 1 + 0.5) / 3)
    assert m.log_loss == pytest.approx(wanted)
    assert m.observed_to_expected == pytest.approx(1 / p.sum())
    assert math.isnan(measure(logits, labels * 0).auc)


def test_settings_name_their_mistakes():
    with pytest.raises(ConfigError, match=r"'training.lrr' \(did you mean 'lr'"):
        Config.from_dict({"training": {"lrr": 1}})
    with pytest.raises(ConfigError, match="training: warmup: wanted a share"):
        Config.from_dict({"training": {"warmup": 2}})
    with pytest.raises(ConfigError, match="batch_size: wanted 2 or more"):
        Settings(batch_size=1)
