"""What the demo trains on: MovieLens, a CSV or Parquet file, or the UCI Adult file shipped here."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._progress import Progress
from ..data import ADULT
from ..data.broken import BadRows
from ..data.columns import ColumnReader
from ..data.errors import DataError
from ..data.features import Batch, Converter, Rows
from ..data.infer import infer
from ..data.loader import Memory
from ..data.movielens import LIKED, write_movielens
from ..data.reading import Reading
from ..data.source import Source
from ..models import Schema

MIN_PER_CLASS = 10
BATCH_ROWS = 4096  # of an evaluation


@dataclass
class Prepared:
    """Rows in memory, in three parts.

    Attributes:
        name: what the rows are, for titles.
        task: what a label of 1 means.
        schema: their columns.
        ids: number of distinct ids, about.
        rows: all of them.
        train, valid, test: row numbers of the three parts.
    """

    name: str
    task: str
    schema: Schema
    ids: int
    rows: Rows
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def batch(self, numbers: np.ndarray, names: Collection[str] | None = None) -> Batch:
        """The rows with these numbers as tensors, or only the features ``names`` of them."""
        return Converter(self.schema, BadRows()).batch(self.rows.take(numbers), names)

    def joined(self, row: np.ndarray, others: np.ndarray, names: Collection[str]) -> Batch:
        """The rows ``others`` with the columns ``names`` of the one ``row``."""
        rows, same = self.rows.take(others), self.rows.take(np.repeat(row, len(others)))
        columns = [name in names for name in self.schema.numeric]
        rows.numeric[:, columns] = same.numeric[:, columns]
        for key in rows.bags:
            kind, _, name = key.partition("/")
            if (name.partition("/")[0] if kind == "history" else name) in names:
                rows.bags[key] = same.bags[key]
        return Converter(self.schema, BadRows()).batch(rows)

    def memory(
        self, numbers: np.ndarray, batch_size: int = BATCH_ROWS, seed: int | None = None
    ) -> Memory:
        """Batches of the rows with these numbers; ``seed`` shuffles them."""
        converter = Converter(self.schema, BadRows())
        return Memory(self.rows.take(numbers), converter, batch_size, seed)

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """(len(numbers),), 0 or 1."""
        return self.rows.labels[numbers, 0]


def prepare(
    path: str | Path | None = None,
    label: str | None = None,
    *,
    categorical: Sequence[str] = (),
    time: str | None = None,
    rows: int | None = None,
    seed: int = 0,
    folder: Path = Path("."),
) -> Prepared:
    """Read a MovieLens folder, a CSV or Parquet file, or what ships with the package.

    Args:
        path: folder or file. None takes MovieLens where the environment variable LIRANK_DATA
            points to it, else the UCI Adult file of the package.
        label: label column, ``NAME`` (0 or 1) or ``NAME=VALUE`` (1 where the column holds VALUE).
        categorical: number columns to read as ids.
        time: column to split by (latest tenth for the test); without it the split is random.
        rows: use no more rows than this: the latest, or a random sample where no time is known.
        seed: of the random split.
        folder: where the table made of a MovieLens folder is written.

    Raises:
        DataError: a file or column cannot be used.
    """
    options: dict[str, Any] = {"categorical": categorical, "time": time, "rows": rows, "seed": seed}
    named = path or os.environ.get("LIRANK_DATA")
    if not named:
        data = _table(ADULT, label or "income=>50K", **options)
        data.name = "UCI Adult"
        return data
    where, named = "" if path else "LIRANK_DATA: ", Path(named)
    if not named.exists():
        raise DataError(f"{where}{named}: no such file or folder")
    if not named.is_dir():
        return _table(named, label, **options)
    if label is not None or categorical or time is not None:
        raise DataError(f"{named}: label, categorical and time are for files, not for MovieLens")
    table = folder / "movielens.parquet"
    write_movielens(named, table, rows=rows)
    data = _table(table, None, ordered=True, source=named / "ratings.dat")
    data.name, data.task = "MovieLens", f"rating >= {LIKED}"
    return data


def _table(
    path: Path,
    label: str | None,
    *,
    categorical: Sequence[str] = (),
    time: str | None = None,
    rows: int | None = None,
    seed: int = 0,
    ordered: bool = False,
    source: Path | None = None,
) -> Prepared:
    """The rows of a file; ``ordered``: they are in order of time, ``source``: named in messages."""
    inferred = infer(
        [path],
        [label] if label else [],
        Reading(categorical=categorical, ignore=[time] if time else ()),
    )
    task = inferred.schema.tasks[0]
    converter = Converter(inferred.schema, BadRows())
    chunks = Source([path], [*converter.columns, *([time] if time else [])]).chunks()
    parts, times = [], []
    for chunk in Progress("reading", unit="chunks").over(chunks):
        parts.append(converter.rows(chunk))
        if time:
            times.append(ColumnReader(chunk, inferred.schema).order(time))
    held = Rows.concatenate(parts)
    labels = held.labels[:, 0]
    if ordered or time:
        order = np.argsort(np.concatenate(times), kind="stable") if time else np.arange(len(held))
        split = ordered_parts(order[-rows:] if rows else order)
    else:
        split = random_parts(labels, rows, seed)
    check_parts(source or path, labels, split)
    words = f"{task.source} = {task.positive or 1}"
    return Prepared(path.name, words, inferred.schema, inferred.ids, held, *split)


def ordered_parts(order: np.ndarray) -> list[np.ndarray]:
    """Rows in order of time: the last tenth for the test, the tenth before to validate."""
    n = len(order)
    return np.split(order, [n * 8 // 10, n * 9 // 10])


def random_parts(labels: np.ndarray, rows: int | None, seed: int) -> list[np.ndarray]:
    """Eight tenths, one tenth and one tenth, drawn at random within each class."""
    generator = np.random.default_rng(seed)
    shares: list[list[np.ndarray]] = [[], [], []]
    picked = generator.permutation(len(labels))[:rows]
    for value in (0, 1):
        for share, part in zip(shares, ordered_parts(picked[labels[picked] == value]), strict=True):
            share.append(part)
    return [np.sort(np.concatenate(share)) for share in shares]


def check_parts(path: Any, labels: np.ndarray, parts: Sequence[np.ndarray]) -> None:
    """Refuse what no AUC can be measured on: too few rows, or all of one class."""
    rows = np.concatenate(parts)
    counts = np.bincount(labels[rows].astype(int), minlength=2)
    if counts.min() < MIN_PER_CLASS:
        raise DataError(
            f"{path}: {counts[1]} of {len(rows)} rows have label 1 and {counts[0]} label 0; "
            f"at least {MIN_PER_CLASS} of each are needed to train and test"
        )
    for part, name in zip(parts, ("train on", "validate on", "test on"), strict=True):
        if len(np.unique(labels[part])) < 2:
            raise DataError(f"{path}: the rows to {name} all have the same label")
