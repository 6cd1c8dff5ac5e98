"""Order of training: sorted files, files larger than a block, places reached again."""

from __future__ import annotations

import csv
import gzip
import random

import numpy as np
import pytest
import torch

for name in ("pyarrow", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

import pyarrow as pa  # noqa: E402
from pyarrow import parquet  # noqa: E402

from lirank_ext.data import files  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.features import Converter  # noqa: E402
from lirank_ext.data.loader import Loader, Position, Split  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402
from lirank_ext.models import Categorical, LiRankConfig, Schema, Task  # noqa: E402
from lirank_ext.training.session import open_trainer  # noqa: E402
from lirank_ext.training.settings import Config  # noqa: E402

ROWS, BLOCK = 1200, 256
SCHEMA = Schema(numeric=["row"], categorical=[Categorical("item")], tasks=[Task("click")])


@pytest.fixture(autouse=True)
def _small_pieces(threads, monkeypatch):
    threads(1)
    monkeypatch.setattr(files, "CSV_BLOCK", 1000)


def sorted_file(path):
    """ROWS rows with all clicks at the end. The item is "a" for a click, else "b"."""
    click = np.arange(ROWS) >= ROWS // 2
    item = np.where(click, "a", "b")
    if path.suffix == ".parquet":
        table = pa.table({"row": np.arange(ROWS), "item": item, "click": click.astype(int)})
        size = ROWS if "one" in path.name else 90
        parquet.write_table(table, path, row_group_size=size)
        return path
    lines = [f"{i},{item[i]},{int(click[i])}" for i in range(ROWS)]
    text = ("\n".join(["row,item,click", *lines]) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def loader(paths, **options) -> Loader:
    converter = Converter(SCHEMA, BadRows())
    options = {"shuffle": True, "seed": 3, "block_rows": BLOCK, "prefetch": 0, **options}
    return Loader(Source(paths, converter.columns), converter, 64, **options)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "one.parquet", "many.parquet"])
def test_every_batch_of_a_sorted_file_is_mixed(tmp_path, name):
    path = sorted_file(tmp_path / name)
    batches = list(loader([path]))
    rows = torch.cat([b.features["numeric"][:, 0] for b in batches])
    assert torch.equal(rows.sort().values, torch.arange(ROWS).float())  # each once
    shares = torch.tensor([b.labels.mean() for b in batches])
    assert ((shares > 0.25) & (shares < 0.75)).all()
    # From all over the file, not from two places.
    spread = torch.stack([b.features["numeric"][:, 0].std() for b in batches])
    assert (spread > 0.2 * ROWS).all()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "one.parquet", "many.parquet"])
def test_any_place_is_reached_again(tmp_path, name):
    paths = [sorted_file(tmp_path / name), sorted_file(tmp_path / f"second_{name}")]
    split = Split(0.2, seed=1)
    whole = list(loader(paths, split=split).epoch(Position(2)))
    for at in (5, len(whole) - 2):
        rest = list(loader(paths, split=split).epoch(whole[at][0]))
        assert len(rest) == len(whole) - at - 1
        for (_, a), (_, b) in zip(whole[at + 1 :], rest, strict=True):
            assert torch.equal(a.features["numeric"], b.features["numeric"])
            assert torch.equal(a.labels, b.labels)
    other = next(iter(loader(paths, split=split, seed=4).epoch(Position(2))))[1]
    assert not torch.equal(other.features["numeric"], whole[0][1].features["numeric"])


@pytest.mark.parametrize("mixed", [True, False])
def test_a_sorted_file_does_not_pull_the_level(tmp_path, monkeypatch, mixed):
    """In the file's order the last blocks teach that every row is a click."""
    path = tmp_path / "a.csv"
    lines = [f"{i},{i % 7},{int(i >= ROWS // 2)}" for i in range(ROWS)]
    path.write_text("\n".join(["row,item,click", *lines]) + "\n")
    model = LiRankConfig(SCHEMA).to_dict()
    model["embedding"].update(dim=4, num_buckets=100, num_remainders=1)
    model["mlp"].update(dims=[8])
    model["cross"].update(rank=4)
    model["numeric"].update(enabled=False)
    training = {"batch_size": 64, "epochs": 3, "shuffle_rows": BLOCK, "prefetch": 0, "lr": 0.01}
    config = Config.from_dict({"model": model, "training": {**training, "patience": 0}})
    if not mixed:
        monkeypatch.setattr(Source, "mixed", Source.blocks)
    progress = open_trainer(config, [path]).fit()
    found = progress.evaluations[-1]["tasks"]["click"]["observed_to_expected"]
    assert (abs(found - 1) < 0.2) == mixed


def test_pieces_of_a_csv_file_are_whole_records(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CSV_BLOCK", 100)
    rng, path = random.Random(0), tmp_path / "a.csv"
    cells = ["a", "b,c", 'x "y" z', "line\nbreak", "", '"', ',\n"', "\r\n"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "text"])
        wanted = [(str(i), rng.choice(cells)) for i in range(600)]
        writer.writerows(wanted)
    source = Source([path], ["n", "text"])

    def read(skip=0):
        tables = [c.table for c in source.chunks(skip)]
        return [tuple(row.values()) for table in tables for row in table.to_pylist()]

    assert read() == wanted
    assert source.count() == 600
    assert len(source.files[0]._index) > 50
    for skip in (0, 1, 299, 599):  # by the pieces known now
        assert read(skip) == wanted[skip:]


def test_a_stray_quote_does_not_hold_up_the_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CSV_BLOCK", 100)
    path = tmp_path / "a.csv"
    cells = ["x"] * 600
    cells[3] = '5" disk'
    lines = [f"{i},{cell}" for i, cell in enumerate(cells)]
    path.write_text("n,text\n" + "\n".join(lines) + "\n")
    source = Source([path], ["n", "text"])
    assert source.count() == 600
    starts = [piece.offset for piece in source.files[0]._index]
    assert max(np.diff(starts)) < 400
    values = [v for c in source.chunks() for v in c.table["text"].to_pylist()]
    assert values == cells


def test_skipped_records_keep_their_line_numbers(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{i},x" for i in range(600)]
    lines[500] = "500"
    path.write_text("n,text\n" + "\n".join(lines) + "\n")
    broken = BadRows(skip=True)
    source = Source([path], ["n", "text"], broken)
    assert source.count() == 599
    values = [v for c in source.chunks(300) for v in c.table["n"].to_pylist()]
    assert values == [str(i) for i in range(300, 600) if i != 500]
    assert broken.examples == [f"{path}:502: 1 fields, where the header has 2"]
