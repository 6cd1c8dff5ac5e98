"""A CSV or Parquet file with a label column."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import DataError
from ..data.records import lines, open_bytes, raise_broken, records, sentence
from ..data.values import LABEL_NAMES, MISSING, MOSTLY, NUMBER, is_id, zero_or_one
from .dataset import (
    Builder,
    Dataset,
    check_parts,
    ordered_parts,
    progress,
    random_parts,
    require,
)

MAX_VALUES = 128  # a number with no more distinct values gets one id per value
NUM_BINS = 64  # any other gets one id per quantile bin


def load_table(
    path: str | Path,
    label: str | None = None,
    *,
    categorical: Sequence[str] = (),
    time: str | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a CSV or Parquet file; arguments as in :func:`load`."""
    table = _Table.read(Path(path))
    name, positive = _label_column(table, label)
    labels, task = _labels(table, name, positive)
    for column in (*categorical, *([time] if time else [])):
        table.check(column)
    order = _time_order(table, time) if time else None
    features = [c for c in table.columns if c not in (name, time)]
    if not features:
        raise DataError(f"{path}: no column to learn the label '{name}' from")
    if order is None:
        parts = random_parts(labels, rows, seed)
    else:
        parts = ordered_parts(order[-rows:] if rows else order)
    check_parts(path, labels, parts)
    builder = Builder(len(labels))
    for column in progress(features, "reading columns"):
        values = None if column in categorical else table.numbers(column)
        if values is None or is_id(column, values):
            builder.add_ids(column, *table.texts(column))
        else:
            builder.add_ids(column, *_bins(values, parts[0]))
            builder.add_dense(values, parts[0])
    return builder.build(table.path.name, task, labels, parts)


def _time_order(table: _Table, column: str) -> np.ndarray:
    """Rows in order of a column of numbers, or of dates written year first."""
    codes, values = table.texts(column)
    if "" in values:
        row = int((codes == values.index("")).argmax())
        raise table.error(row, f"the time '{column}' is missing")
    if all(re.match(r"\d{4}-\d\d-\d\d", value) for value in values):
        return np.argsort(np.array(values)[codes], kind="stable")
    times = table.numbers(column)
    if times is None:
        wanted = "numbers or dates like 2024-12-31 were wanted"
        raise DataError(f"{table.path}: the time '{column}' holds '{values[0]}', where {wanted}")
    return np.argsort(times, kind="stable")


def _bins(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """One id per distinct value where there are few, else per quantile bin of the training rows."""
    missing = np.isnan(values)
    known = np.unique(values[~missing])
    if len(known) <= MAX_VALUES:
        codes, names = np.searchsorted(known, values), [f"{v:g}" for v in known]
    else:
        seen = values[train]
        edges = np.quantile(seen[~np.isnan(seen)], np.arange(1, NUM_BINS) / NUM_BINS)
        edges = np.unique(edges)
        codes = np.searchsorted(edges, values, side="right")
        names = [f"bin {i}" for i in range(len(edges) + 1)]
    codes[missing] = len(names)
    return codes, [*names, ""]


def _label_column(table: _Table, label: str | None) -> tuple[str, str | None]:
    if label is None:
        label = next((c for c in table.columns if c.lower() in LABEL_NAMES), None)
        if label is None:
            columns = ", ".join(table.columns)
            raise DataError(f"{table.path}: name the label column with --label (one of {columns})")
    if label in table.columns:
        return label, None
    name, equals, value = label.partition("=")
    table.check(name if equals else label)
    return name, value


def _labels(table: _Table, name: str, positive: str | None) -> tuple[np.ndarray, str]:
    """The labels as 0 and 1, and the task in words."""
    codes, values = table.texts(name)
    if positive is not None:
        if positive not in values:
            some = ", ".join(f"'{v}'" for v in values[:5])
            raise DataError(f"{table.path}: no label '{name}' is '{positive}' (it holds {some})")
        return (codes == values.index(positive)).astype(np.float64), f"{name} = {positive}"
    labels = np.array([zero_or_one(value) for value in values])[codes]
    if np.any(bad := np.isnan(labels)):
        row = int(bad.argmax())
        value = values[codes[row]]
        hint = f"; for another one give --label '{name}=VALUE'" if 1 < len(values) < 20 else ""
        found = f"is '{value}', where 0 or 1 was wanted{hint}" if value else "is missing"
        raise table.error(row, f"the label '{name}' {found}")
    return labels, f"{name} = 1"


class _Table:
    """Columns of a file, with the way back from a row to its line for messages."""

    def __init__(self, path: Path, arrow: Any, delimiter: str | None) -> None:
        self.path, self.arrow, self.delimiter = path, arrow, delimiter
        self.columns: list[str] = arrow.column_names
        if arrow.num_rows == 0:
            raise DataError(f"{path}: no rows")
        twice = {c for c in self.columns if self.columns.count(c) > 1}
        if twice:
            raise DataError(f"{path}:1: column '{min(twice)}' is there more than once")

    @classmethod
    def read(cls, path: Path) -> _Table:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: empty file")
        if path.suffix.lower() in (".parquet", ".pq"):
            return cls(path, _read_parquet(path), None)
        return cls(path, *_read_csv(path))

    def check(self, column: str) -> None:
        if column not in self.columns:
            near = difflib.get_close_matches(column, self.columns, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.columns)}"
            raise DataError(f"{self.path}: no column '{column}'; {hint}")

    def error(self, row: int, what: str) -> DataError:
        """An error at a row, by line number where the file has lines."""
        if self.delimiter is None:
            return DataError(f"{self.path}, row {row + 1}: {what}")
        found = records(self.path, self.delimiter)
        line = next(line for i, (line, _) in enumerate(found) if i == row + 1)
        return DataError(f"{self.path}:{line}: {what}")

    def texts(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column as codes and the text of each code; missing values are ""."""
        encoded = self._text(column).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, encoded.dictionary.to_pylist()

    def numbers(self, column: str) -> np.ndarray | None:
        """A column as float64 with NaN for what is missing; None where it holds text."""
        pa, pc = require("pyarrow"), require("pyarrow.compute")
        text = self._text(column)
        missing = pc.equal(text, "").to_numpy(zero_copy_only=False)
        number = pc.match_substring_regex(text, NUMBER).to_numpy(zero_copy_only=False)
        if number.sum() < MOSTLY * (~missing).sum() or missing.all():
            return None
        broken = ~number & ~missing
        if not broken.any():
            values = pc.if_else(pa.array(missing), None, text).cast(pa.float64())
            values = values.to_numpy(zero_copy_only=False)
            broken = np.isinf(values)
        if broken.any():
            row = int(broken.argmax())
            what = f"column '{column}' holds '{text[row]}', where other rows hold numbers"
            raise self.error(row, f"{what} (--categorical '{column}' reads them as text)")
        return values

    def _text(self, column: str) -> Any:
        """One Arrow array of trimmed strings, "" where the value is missing."""
        pa, pc = require("pyarrow"), require("pyarrow.compute")
        values = self.arrow[column]
        if pa.types.is_temporal(values.type):
            values = values.cast(pa.timestamp("us")).cast(pa.int64())
        elif pa.types.is_nested(values.type):
            raise DataError(f"{self.path}: column '{column}' holds {values.type}, not one value")
        values = values.cast(pa.large_string()).combine_chunks()
        values = pc.utf8_trim_whitespace(pc.fill_null(values, ""))
        return pc.if_else(pc.is_in(values, pa.array(MISSING, pa.large_string())), "", values)


def _read_parquet(path: Path) -> Any:
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        return parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {sentence(error)}") from error


def _read_csv(path: Path) -> tuple[Any, str]:
    """All columns as strings: what a column holds is decided once it is there as a whole."""
    pa, reader = require("pyarrow"), require("pyarrow.csv")
    header = next((line for line in lines(path) if line.strip()), "")
    delimiter = max(",\t;|", key=header.count)  # the first of equals: a comma
    names = next(csv.reader([header], delimiter=delimiter), [])
    try:
        table = reader.read_csv(
            path,
            parse_options=reader.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=reader.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowException as error:
        raise_broken(path, delimiter)
        raise DataError(f"{path}: cannot be read as CSV: {sentence(error)}") from error
    if _quotes(path) % 2:  # an open quote swallows the rest of the file as one value
        raise_broken(path, delimiter)
    return table, delimiter


def _quotes(path: Path) -> int:
    with open_bytes(path) as file:
        return sum(chunk.count(b'"') for chunk in iter(lambda: file.read(1 << 20), b""))
