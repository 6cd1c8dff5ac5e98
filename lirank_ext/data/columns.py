"""The columns of a chunk read as numbers, hashes and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import Categorical, History, Task
from ..ops.hashing import hash_strings
from .errors import DataError
from .files import Chunk
from .packages import need
from .values import MISSING, NUMBER, seconds, zero_or_one

Bag = tuple[np.ndarray, np.ndarray]  # hashes of all rows one after the other, how many each has


def hash_ids(key: str, values: Any) -> np.ndarray:
    """The ids of values of a column: the hash of ``key=value`` for each.

    Args:
        key: of the column; columns of one key share their ids.
        values: text, as a sequence or an Arrow array.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if not isinstance(values, pa.Array):
        values = pa.array([str(value) for value in values], pa.large_string())
    prefix, empty = (pa.scalar(text, pa.large_string()) for text in (f"{key}=", ""))
    return hash_strings(pc.binary_join_element_wise(prefix, values, empty)).numpy()


def take_bag(bag: Bag, rows: np.ndarray) -> Bag:
    """The bags of these rows."""
    values, lengths = bag
    starts = lengths.cumsum() - lengths
    return values[ranges(starts[rows], lengths[rows])], lengths[rows]


def ranges(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``first, first + 1, ..., first + length - 1`` of every pair, concatenated."""
    ends = lengths.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(firsts - ends + lengths, lengths)


class ColumnReader:
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

    def distinct(self, column: str) -> list[str]:
        """The different values of a column as text; "" where one is missing."""
        return self._text(self.chunk.table[column], column).unique().to_pylist()

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

    def times(self, column: str) -> np.ndarray:
        """Numbers, or seconds since 1970 where the column holds dates; float64.

        Raises:
            DataError: a value is missing, or is neither.
        """
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        values = self.chunk.table[column]
        if pa.types.is_temporal(values.type):
            values = values.cast(pa.timestamp("us")).cast(pa.int64())
        text = self._text(values, column)
        times = seconds(text)
        if np.isnan(times).any():
            number = pc.if_else(pc.match_substring_regex(text, NUMBER), text, None)
            times = number.cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(times))
        if len(bad):
            value, where = text[int(bad[0])].as_py(), self.chunk.where(int(bad[0]))
            wanted = "where a number or a date like 2024-12-31 was wanted"
            found = f"holds '{value}', {wanted}" if value else "is missing"
            raise DataError(f"{where}: the time '{column}' {found}")
        return times

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
        names = [f"bin {i}" for i in range(len(column.edges) + 1)]
        return hash_ids(column.key, [*names, ""])[places]

    def _hashes(self, values: Any, column: Categorical) -> np.ndarray:
        """A hash of ``prefix=value`` each; the distinct values alone are hashed."""
        encoded = self._text(values, column.name).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        return hash_ids(column.key, encoded.dictionary)[codes]

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
            known = np.array([zero_or_one(v) for v in values], np.float64)
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
