"""From Arrow columns to the tensors that a LiRank model reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models import Categorical, History, Schema, Task
from ..nn.dwell import LongDwellLabels
from .broken import BadRows
from .columns import Bag, ColumnReader, ranges, take_bag
from .errors import DataError
from .files import Chunk


class Whole(NamedTuple):
    """The batch of which a process has a part: its rows, and the sum of their weights."""

    rows: int
    weight: float


@dataclass
class Batch:
    """Some rows as tensors.

    Attributes:
        features: by name, as :class:`lirank_ext.models.LiRank` reads them.
        labels: (B, T); (B, 0) where they are not read.
        weights: (B,), where the rows have weights.
        groups: (B,) hashes, where the rows are grouped.
        whole: the batch of all processes, where these rows are the part of one.
    """

    features: dict[str, Tensor]
    labels: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None
    whole: Whole | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def all_rows(self) -> int:
        """The number of rows, those of other processes included."""
        return len(self) if self.whole is None else self.whole.rows

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.features.items()}
        others = (self.labels, self.weights, self.groups)
        labels, weights, groups = (
            None if t is None else t.to(device, non_blocking=True) for t in others
        )
        return Batch(moved, labels, weights, groups, self.whole)


@dataclass
class Rows:
    """Rows in columns, ready to be drawn from.

    Attributes:
        numeric: (N, K) float32, NaN where missing.
        bags: hashes of every categorical and history column, its actions and the popularity
            column, by key.
        labels: (N, T) float32.
        numbers: (N,) number of each row, over all files.
        weights, groups: (N,) float32 and (N,) hashes, where the schema names such columns and the
            labels are read.
    """

    numeric: np.ndarray
    bags: dict[str, Bag]
    labels: np.ndarray
    numbers: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> Rows:
        """These rows, in this order."""
        bags = {key: take_bag(bag, rows) for key, bag in self.bags.items()}
        arrays = (self.numeric, self.labels, self.numbers, self.weights, self.groups)
        numeric, labels, *others = (None if a is None else a[rows] for a in arrays)
        return Rows(numeric, bags, labels, *others)

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
        names = ("numeric", "labels", "numbers", "weights", "groups")
        numeric, labels, *others = (_concatenate([getattr(p, n) for p in parts]) for n in names)
        return Rows(numeric, bags, labels, *others)


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
        broken: BadRows,
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
        names += [name for name in (self._weight, self._group) if name is not None]
        return list(dict.fromkeys(names))

    @property
    def _weight(self) -> str | None:
        return self.schema.weight if self.tasks else None

    @property
    def _group(self) -> str | None:
        return self.schema.group if self.tasks else None

    def rows(self, chunk: Chunk) -> Rows:
        """All rows of a chunk whose values fit.

        Raises:
            DataError: a row does not fit, where such rows are not to be skipped, or a column is
                of a type that can't be read.
        """
        reader = ColumnReader(chunk, self.schema)
        n = chunk.table.num_rows
        numeric = [reader.feature(name) for name in self.schema.numeric]
        bags = {f"ids/{c.name}": reader.bag(c) for c in self.schema.categorical}
        for history in self.schema.history:
            bags.update(self._history(reader, history))
        if self.schema.popularity:
            bags["popularity"] = reader.bag(self._plain(self.schema.popularity))
        labels = [self._labels(reader, task) for task in self.tasks]
        rows = Rows(
            np.stack(numeric, 1) if numeric else np.zeros((n, 0), np.float32),
            bags,
            np.stack(labels, 1).astype(np.float32) if labels else np.zeros((n, 0), np.float32),
            chunk.numbers,
            None if self._weight is None else reader.weights(self._weight),
            None if self._group is None else reader.group(self._plain(self._group)),
        )
        return self._without_broken(rows, reader, chunk)

    def _labels(self, reader: ColumnReader, task: Task) -> np.ndarray:
        if task.dwell is None:
            return reader.labels(task)
        dwell, columns = reader.dwell(task.source, task.dwell.clusters)
        if task.name not in self.dwell:
            raise DataError(f"task '{task.name}': its dwell thresholds are not measured yet")
        return self.dwell[task.name].label(dwell, columns).numpy()

    def dwell_of(self, chunk: Chunk, task: Task) -> tuple[Tensor, Tensor, np.ndarray]:
        """Times and clusters of the rows that have a time, and their row numbers."""
        reader = ColumnReader(chunk, self.schema)
        dwell, columns = reader.dwell(task.source, task.dwell.clusters)
        kept = np.ones(len(dwell), bool)
        kept[list(reader.broken)] = False
        return dwell[kept], columns[kept], chunk.numbers[kept]

    def _without_broken(self, rows: Rows, reader: ColumnReader, chunk: Chunk) -> Rows:
        if not reader.broken:
            return rows
        for row, message in sorted(reader.broken.items()):
            key = (chunk.file.path, "row", chunk.in_file(row))
            self.broken.add(key, lambda r=row, m=message: f"{chunk.where(r)}: {m}")
        kept = np.ones(len(rows), bool)
        kept[list(reader.broken)] = False
        return rows.take(np.flatnonzero(kept))

    def _history(self, reader: ColumnReader, history: History) -> dict[str, Bag]:
        candidate = next(c for c in self.schema.categorical if c.name == history.candidate)
        separator, kind = history.separator, candidate.kind
        column = Categorical(history.name, prefix=candidate.key, separator=separator, kind=kind)
        bags = {"items": reader.bag(column)}
        if history.actions:
            bags["actions"] = reader.bag(self._plain(history.actions, separator))
            reader.same_lengths(history, bags["items"][1], bags["actions"][1])
        cut = {k: _newest(bag, self.max_len, history.newest_first) for k, bag in bags.items()}
        return {f"history/{history.name}/{key}": bag for key, bag in cut.items()}

    def _plain(self, name: str, separator: str | None = None) -> Categorical:
        """A column of ids that has no table of its own."""
        return Categorical(name, separator=separator, kind=self.schema.kind(name))

    def part(self, rows: Rows, numbers: np.ndarray, share: tuple[int, int] = (0, 1)) -> Batch:
        """A batch of the rows with these numbers, or a process's part of it.

        Args:
            rows: where they are among others.
            numbers: (B,), of the whole batch.
            share: number of the process, from 0 on, and how many there are; with R of them,
                process r has the rows r, r + R, ... of the batch.
        """
        first, step = share
        batch = self.batch(rows.take(numbers[first::step]))
        if step > 1:
            all_weights = None if rows.weights is None else rows.weights[numbers]
            weight = len(numbers) if all_weights is None else float(all_weights.sum())
            batch.whole = Whole(len(numbers), weight)
        return batch

    def keeps_all(self) -> bool:
        """Whether every row is kept and has weight 1, so that none has to be read to know that."""
        return not self.broken.skip and self._weight is None

    def batch(self, rows: Rows, names: Collection[str] | None = None) -> Batch:
        """Rows as tensors, named as :class:`lirank_ext.models.LiRank` reads them.

        Args:
            rows: the rows.
            names: make only these features, as one side of ``LiRank.score`` has them. The
                popularity column is among them if its name is.
        """
        wanted = [names is None or name in names for name in self.schema.numeric]
        features = {}
        if all(wanted):
            features["numeric"] = torch.from_numpy(rows.numeric)
        elif any(wanted):
            features["numeric"] = torch.from_numpy(rows.numeric[:, wanted])
        for table, members in self.schema.tables().items():
            columns = [c for c in members if names is None or c.name in names]
            if not columns:
                continue
            bags = [rows.bags[f"ids/{c.name}"] for c in columns]
            ids, offsets = _interleave(bags)
            features[f"ids/{table}"] = torch.from_numpy(ids)
            features[f"offsets/{table}"] = torch.from_numpy(offsets)
        for history in self.schema.history:
            if names is not None and history.name not in names:
                continue
            key = f"history/{history.name}"
            lengths = rows.bags[f"{key}/items"][1]
            features[f"{key}/lengths"] = torch.from_numpy(lengths)
            features[f"{key}/items"] = _padded(rows.bags[f"{key}/items"])
            if history.actions:
                features[f"{key}/actions"] = _padded(rows.bags[f"{key}/actions"])
        if self.schema.popularity and (names is None or self.schema.popularity in names):
            features["popularity"] = torch.from_numpy(rows.bags["popularity"][0])
        others = (rows.labels, rows.weights, rows.groups)
        labels, weights, groups = (None if a is None else torch.from_numpy(a) for a in others)
        return Batch(features, labels, weights, groups)


def _concatenate(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


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
