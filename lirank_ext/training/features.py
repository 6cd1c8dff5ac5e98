"""From Arrow columns to the tensors that a LiRank model reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import hash_strings
from ..datasets import DataError
from ..datasets.dataset import ranges
from ..datasets.table import MISSING, NUMBER, _zero_or_one
from ..models import Categorical, History, Schema, Task
from ..nn.dwell import LongDwellLabels
from .files import Broken, Chunk
from .packages import need

Bag = tuple[np.ndarray, np.ndarray]  # hashes of all rows one after the other, how many each has


@dataclass
class Batch:
    """Features and labels (B, T) of some rows; no labels where they are not read."""

    features: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.features.items()}
        return Batch(moved, self.labels.to(device, non_blocking=True))


@dataclass
class Rows:
    """Rows in columns, ready to be drawn from.

    Attributes:
        numeric: (N, K) float32, NaN where missing.
        bags: hashes of every categorical and history column, its actions and the popularity
            column, by key.
        labels: (N, T) float32.
        numbers: (N,) number of each row, over all files.
    """

    numeric: np.ndarray
    bags: dict[str, Bag]
    labels: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> Rows:
        """These rows, in this order."""
        bags = {key: take_bag(bag, rows) for key, bag in self.bags.items()}
        return Rows(self.numeric[rows], bags, self.labels[rows], self.numbers[rows])

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of all parts."""
        if len(parts) == 1:
            return parts[0]
        bags = {
            key: (
                np.concatenate([p.bags[key][0] for p in parts]),
                np.concatenate([p.bags[key][1] for p in parts]),
            )
            for key in parts[0].bags
        }
        names = ("numeric", "labels", "numbers")
        numeric, labels, numbers = (np.concatenate([getattr(p, n) for p in parts]) for n in names)
        return Rows(numeric, bags, labels, numbers)


def take_bag(bag: Bag, rows: np.ndarray) -> Bag:
    """The bags of these rows."""
    values, lengths = bag
    starts = lengths.cumsum() - lengths
    return values[ranges(starts[rows], lengths[rows])], lengths[rows]


class Converter:
    """Turns Arrow tables into :class:`Rows`, and rows into batches.

    Args:
        schema: the columns.
        broken: what to do with rows whose values do not fit.
        labels: whether to read the labels.
        max_len: longest history that is kept.
        dwell: thresholds of the tasks that are long dwells, by task.
    """

    def __init__(
        self,
        schema: Schema,
        broken: Broken,
        labels: bool = True,
        max_len: int = 100,
        dwell: Mapping[str, LongDwellLabels] | None = None,
    ) -> None:
        self.schema, self.broken = schema, broken
        self.tasks = schema.tasks if labels else []
        self.max_len = max_len
        self.dwell = dwell or {}

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        names = [*self.schema.columns, *(t.source for t in self.tasks)]
        for task in self.tasks:
            names += task.dwell.clusters if task.dwell else []
        return list(dict.fromkeys(names))

    def rows(self, chunk: Chunk) -> Rows:
        """All rows of a chunk whose values fit.

        Raises:
            DataError: a row does not fit, where such rows are not to be skipped, or a column is
                of a type that can't be read.
        """
        reader = _ChunkReader(chunk)
        n = chunk.table.num_rows
        numeric = [reader.numbers(name) for name in self.schema.numeric]
        bags = {f"ids/{c.name}": reader.bag(c) for c in self.schema.categorical}
        for history in self.schema.history:
            bags.update(self._history(reader, history))
        if self.schema.popularity:
            bags["popularity"] = reader.bag(Categorical(self.schema.popularity))
        labels = [self._labels(reader, task) for task in self.tasks]
        rows = Rows(
            np.stack(numeric, 1).astype(np.float32) if numeric else np.zeros((n, 0), np.float32),
            bags,
            np.stack(labels, 1).astype(np.float32) if labels else np.zeros((n, 0), np.float32),
            chunk.first + np.arange(n),
        )
        return self._without_broken(rows, reader, chunk)

    def _labels(self, reader: _ChunkReader, task: Task) -> np.ndarray:
        if task.dwell is None:
            return reader.labels(task)
        dwell, columns = reader.dwell(task.source, task.dwell.clusters)
        if task.name not in self.dwell:
            raise DataError(f"task '{task.name}': its dwell thresholds are not measured yet")
        return self.dwell[task.name].label(dwell, columns).numpy()

    def dwell_of(self, chunk: Chunk, task: Task) -> tuple[Tensor, Tensor, np.ndarray]:
        """Times and clusters of the rows that have a time, and their row numbers."""
        reader = _ChunkReader(chunk)
        dwell, columns = reader.dwell(task.source, task.dwell.clusters)
        kept = np.ones(len(dwell), bool)
        kept[list(reader.broken)] = False
        numbers = chunk.first + np.flatnonzero(kept)
        return dwell[kept], columns[kept], numbers

    def _without_broken(self, rows: Rows, reader: _ChunkReader, chunk: Chunk) -> Rows:
        if not reader.broken:
            return rows
        for row, message in sorted(reader.broken.items()):
            key = (chunk.file.path, "row", chunk.row + row)
            self.broken.add(key, lambda r=row, m=message: f"{chunk.where(r)}: {m}")
        kept = np.ones(len(rows), bool)
        kept[list(reader.broken)] = False
        return rows.take(np.flatnonzero(kept))

    def _history(self, reader: _ChunkReader, history: History) -> dict[str, Bag]:
        candidate = next(c for c in self.schema.categorical if c.name == history.candidate)
        column = Categorical(history.name, prefix=candidate.key, separator=history.separator)
        bags = {"items": reader.bag(column)}
        if history.actions:
            bags["actions"] = reader.bag(Categorical(history.actions, separator=history.separator))
            reader.same_lengths(history, bags["items"][1], bags["actions"][1])
        cut = {k: _newest(bag, self.max_len, history.newest_first) for k, bag in bags.items()}
        return {f"history/{history.name}/{key}": bag for key, bag in cut.items()}

    def batch(self, rows: Rows) -> Batch:
        """Rows as tensors, named as :class:`lirank_ext.models.LiRank` reads them."""
        features = {"numeric": torch.from_numpy(rows.numeric)}
        for table, columns in self.schema.tables().items():
            bags = [rows.bags[f"ids/{c.name}"] for c in columns]
            ids, offsets = _interleave(bags)
            features[f"ids/{table}"] = torch.from_numpy(ids)
            features[f"offsets/{table}"] = torch.from_numpy(offsets)
        for history in self.schema.history:
            key = f"history/{history.name}"
            lengths = rows.bags[f"{key}/items"][1]
            features[f"{key}/lengths"] = torch.from_numpy(lengths)
            features[f"{key}/items"] = _padded(rows.bags[f"{key}/items"])
            if history.actions:
                features[f"{key}/actions"] = _padded(rows.bags[f"{key}/actions"])
        if self.schema.popularity:
            features["popularity"] = torch.from_numpy(rows.bags["popularity"][0])
        return Batch(features, torch.from_numpy(rows.labels))


def _interleave(bags: Sequence[Bag]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes row by row and column by column within a row, and where each bag starts."""
    lengths = np.stack([length for _, length in bags], 1)
    if (lengths == 1).all():
        ids = np.stack([values for values, _ in bags], 1).ravel()
        return ids, np.arange(len(ids))
    offsets = lengths.ravel().cumsum() - lengths.ravel()
    firsts = offsets.reshape(lengths.shape)
    ids = np.empty(lengths.sum(), np.int64)
    for i, (values, length) in enumerate(bags):
        ids[ranges(firsts[:, i], length)] = values
    return ids, offsets


def _padded(bag: Bag) -> Tensor:
    """(B, longest), zeros behind; at least one wide."""
    values, lengths = bag
    width = max(1, int(lengths.max(initial=0)))
    out = np.zeros((len(lengths), width), np.int64)
    out[np.arange(width) < lengths[:, None]] = values
    return torch.from_numpy(out)


def _newest(bag: Bag, most: int, newest_first: bool) -> Bag:
    """The newest ``most`` of every bag, newest first."""
    values, lengths = bag
    starts, kept = lengths.cumsum() - lengths, np.minimum(lengths, most)
    if newest_first:
        return values[ranges(starts, kept)], kept
    back = np.repeat(starts + lengths - 1, kept) - ranges(np.zeros_like(kept), kept)
    return values[back], kept


class _ChunkReader:
    """Reads the columns of one chunk; rows that do not fit are gathered with what is wrong."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.broken: dict[int, str] = {}

    def _mark(self, rows: Iterator[int] | Sequence[int], message: Any) -> None:
        for row in rows:
            self.broken.setdefault(int(row), message(int(row)))

    def _text(self, values: Any, column: str) -> Any:
        """One Arrow array of trimmed text, "" where the value is missing."""
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
            file = self.chunk.file.path
            raise DataError(f"{file}: column '{column}' holds {values.type}, not one value")
        if pa.types.is_null(values.type) or not pa.types.is_large_string(values.type):
            values = values.cast(pa.large_string())
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        values = pc.utf8_trim_whitespace(pc.fill_null(values, ""))
        return pc.if_else(pc.is_in(values, pa.array(MISSING, pa.large_string())), "", values)

    def numbers(self, column: str) -> np.ndarray:
        """float64, NaN where missing."""
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        values = self.chunk.table[column]
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            return values.cast(pa.float64()).to_numpy()
        text = self._text(values, column)
        number = pc.match_substring_regex(text, NUMBER)
        good = number.to_numpy(zero_copy_only=False)
        broken = ~good & pc.not_equal(text, "").to_numpy(zero_copy_only=False)
        wanted = "where a number was wanted"
        self._mark(
            np.flatnonzero(broken), lambda i: f"column '{column}' holds '{text[i]}', {wanted}"
        )
        known = pc.if_else(number, text, pa.scalar(None, pa.large_string())).cast(pa.float64())
        return known.to_numpy(zero_copy_only=False)

    def bag(self, column: Categorical) -> Bag:
        """Hashes of a categorical column."""
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        values = self.chunk.table[column.name]
        if column.edges:
            return self._binned(column), np.ones(len(values), np.int64)
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.combine_chunks()
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
            return self._hashes(values.flatten(), column), lengths.astype(np.int64)
        if column.separator is None:
            return self._hashes(values, column), np.ones(len(values), np.int64)
        text = self._text(values, column.name)
        parts = pc.split_pattern(text, column.separator)
        lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.utf8_trim_whitespace(parts.flatten())
        # An empty cell is an empty bag, and two separators in a row enclose nothing.
        there = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        counts = np.bincount(row[there], minlength=len(lengths)).astype(np.int64)
        return self._hashes(flat.filter(pa.array(there)), column), counts

    def _binned(self, column: Categorical) -> np.ndarray:
        values = self.numbers(column.name)
        places = np.searchsorted(column.edges, values, side="right")
        places[np.isnan(values)] = len(column.edges) + 1
        names = [f"{column.key}=bin {i}" for i in range(len(column.edges) + 1)]
        return hash_strings([*names, f"{column.key}="]).numpy()[places]

    def _hashes(self, values: Any, column: Categorical) -> np.ndarray:
        """A hash of ``prefix=value`` each; the distinct values alone are hashed."""
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        encoded = self._text(values, column.name).dictionary_encode()
        prefix = pa.scalar(f"{column.key}=", pa.large_string())
        empty = pa.scalar("", pa.large_string())
        named = pc.binary_join_element_wise(prefix, encoded.dictionary, empty)
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        return hash_strings(named).numpy()[codes]

    def same_lengths(self, history: History, items: np.ndarray, actions: np.ndarray) -> None:
        """Mark rows with another number of actions than of items."""

        def message(i: int) -> str:
            found = f"'{history.actions}' has {actions[i]} actions, '{history.name}'"
            return f"{found} {items[i]} items"

        self._mark(np.flatnonzero(items != actions), message)

    def dwell(self, column: str, clusters: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Times (n,) float64 and clusters (n, columns) as hashes; 0 where the row is broken."""
        times = self.numbers(column)
        bad = ~(np.isfinite(times) & (times >= 0))
        self._mark(
            np.flatnonzero(bad),
            lambda i: f"the dwell time '{column}' is {times[i]:g}, where 0 or more was wanted",
        )
        times = np.where(bad, 0.0, times)
        table = self.chunk.table
        codes = [self._hashes(table[name], Categorical(name)) for name in clusters]
        columns = np.stack(codes, 1) if codes else np.zeros((len(times), 1), np.int64)
        return torch.from_numpy(times), torch.from_numpy(columns)

    def labels(self, task: Task) -> np.ndarray:
        """0 or 1, float64."""
        encoded = self._text(self.chunk.table[task.source], task.source).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        values = encoded.dictionary.to_pylist()
        if task.positive is None:
            known = np.array([_zero_or_one(v) for v in values], np.float64)
        else:
            known = np.array(
                [np.nan if v == "" else v == task.positive for v in values], np.float64
            )
        labels = known[codes] if len(known) else np.zeros(0)

        def message(i: int) -> str:
            value = values[codes[i]]
            found = f"is '{value}', where 0 or 1 was wanted" if value else "is missing"
            return f"the label '{task.source}' {found}"

        self._mark(np.flatnonzero(np.isnan(labels)), message)
        return labels
