"""The columns of a chunk read as numbers, hashes and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import Categorical, History, Schema, Task, TimePart
from ..ops.hashing import hash_strings
from .errors import DataError
from .files import Chunk
from .labels import describe_bad_label, labels_of
from .packages import need
from .text import (
    UnreadableColumn,
    decoded,
    is_list,
    is_moment,
    is_number,
    spelled,
    to_numbers,
    to_text,
)
from .times import NEWEST, OLDEST, UNITS, parts, seconds, typed_seconds

Bag = tuple[np.ndarray, np.ndarray]  # hashes of all rows one after the other, how many each has
FEW = 20  # values that a message may list
MOST = 1e30  # of a weight: sums of more would not be finite in float32
INDICATED = ("there", "")  # the ids of an indicator: a value is there, or it is missing


def hash_ids(key: str, values: Any) -> np.ndarray:
    """The ids of values of a column. The id of "" is that of a missing value.

    The text that is hashed holds the length of the key, the key and the value, as in
    ``4:user=anna``. So values of two keys never give the same text, whatever characters they have.

    Args:
        key: the name of the column, or its prefix. Columns with one key share their ids.
        values: the values as text, in a sequence or an Arrow array.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if not isinstance(values, pa.Array):
        values = pa.array([str(value) for value in values], pa.large_string())
    start = pa.scalar(f"{len(key)}:{key}=", pa.large_string())
    named = pc.binary_join_element_wise(start, values, pa.scalar("", pa.large_string()))
    return hash_strings(named).numpy()


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
    """Reads the columns of one chunk and collects the rows whose values do not fit.

    Args:
        chunk: the rows.
        schema: says how files write the columns.
    """

    def __init__(self, chunk: Chunk, schema: Schema) -> None:
        self.chunk, self.schema = chunk, schema
        self.broken: dict[int, str] = {}
        # A typed file says itself which of its texts are missing.
        self.missing = () if chunk.file.is_parquet else schema.missing
        self.times = {part.name: part for part in schema.times}
        # Several features are made of one column: it is read once.
        self._numbers: dict[str, np.ndarray] = {}
        self._moments: dict[tuple[str, str], np.ndarray] = {}

    def _mark(self, rows: Iterator[int] | Sequence[int], message: Callable[[int], str]) -> None:
        for row in rows:
            self.broken.setdefault(int(row), message(int(row)))

    def _read(self, column: str, read: Callable[..., Any], *options: Any) -> Any:
        """The result of ``read`` on the column's values, or an error that names a way out."""
        try:
            return read(self.chunk.table[column], *options)
        except UnreadableColumn as error:
            raise self._unreadable(column, error) from error

    def _unreadable(self, column: str, error: Exception | str) -> DataError:
        return DataError(
            f"{self.chunk.file.path}: column '{column}' {error}; --ignore '{column}' leaves it out"
        )

    def text(self, column: str) -> Any:
        """One Arrow array of trimmed text, "" where the value is missing."""
        return self._read(column, to_text, self.missing)

    def distinct(self, column: str) -> list[str]:
        """The different values of a column as text; "" where one is missing."""
        return self.text(column).unique().to_pylist()

    def numbers(self, column: str) -> np.ndarray:
        """float64, NaN where missing."""
        if column not in self._numbers:
            self._numbers[column] = self._read_numbers(column)
        return self._numbers[column]

    def _read_numbers(self, column: str) -> np.ndarray:
        comma = column in self.schema.decimal_comma
        numbers, bad = self._read(column, to_numbers, self.schema.missing, comma)

        def message(row: int) -> str:
            held = to_text(self.chunk.table[column].slice(row, 1))[0]
            wanted = "number was" if np.isnan(numbers[row]) else "finite number was"
            return f"column '{column}' holds '{held}', where a {wanted} wanted"

        self._mark(np.flatnonzero(bad), message)
        return np.where(bad, np.nan, numbers)

    def feature(self, name: str) -> np.ndarray:
        """A numeric feature (a column of numbers, or an age) as float32; NaN where missing."""
        if name in self.times:
            part = self.times[name]
            return self._part(part).astype(np.float32)
        numbers, scaling = self.numbers(name), self.schema.scaling.get(name)
        if scaling is not None:
            numbers = (numbers - scaling.center) / scaling.scale
        with np.errstate(over="ignore"):
            narrow = numbers.astype(np.float32)
        beyond = np.isinf(narrow)
        what = f"column '{name}' holds a number too large for float32"
        self._mark(np.flatnonzero(beyond), lambda _: what)
        return np.where(beyond, np.nan, narrow)

    def moments(self, column: str, form: str) -> np.ndarray:
        """Seconds since 1970, NaN where missing."""
        key = (column, form)
        if key not in self._moments:
            self._moments[key] = self._read_moments(column, form)
        return self._moments[key]

    def _read_moments(self, column: str, form: str) -> np.ndarray:
        values = decoded(self.chunk.table[column])
        if is_moment(values.type):
            return typed_seconds(values)
        if is_number(values.type) and form in UNITS:
            found = self.numbers(column) * UNITS[form]
            there = ~np.isnan(found)
        else:
            text = self._read(column, to_text, self.schema.missing)
            found = seconds(text, form)
            there = need("pyarrow.compute").not_equal(text, "").to_numpy(zero_copy_only=False)
        inside = (found >= OLDEST) & (found < NEWEST)

        def message(row: int) -> str:
            held = to_text(self.chunk.table[column].slice(row, 1))[0]
            return f"column '{column}' holds '{held}', where a time ({form}) was wanted"

        self._mark(np.flatnonzero(there & ~inside), message)
        return np.where(inside, found, np.nan)

    def _part(self, part: TimePart) -> np.ndarray:
        moments = self.moments(part.column, part.form)
        return parts(moments, [part.part], part.origin)[part.part]

    def order(self, column: str) -> np.ndarray:
        """The numbers to sort rows by: seconds since 1970 if the column holds dates.

        Raises:
            DataError: a value is missing, or is neither.
        """
        values = decoded(self.chunk.table[column])
        text = self._read(column, to_text, self.schema.missing)
        found = typed_seconds(values) if is_moment(values.type) else seconds(text)
        if np.isnan(found).any():
            found, _ = to_numbers(values, self.schema.missing, comma=False)
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            value, where = text[int(bad[0])].as_py(), self.chunk.where(int(bad[0]))
            wanted = "where a number or a date like 2024-12-31 was wanted"
            what = f"holds '{value}', {wanted}" if value else "is missing"
            raise DataError(f"{where}: the time '{column}' {what}")
        return found

    def bag(self, column: Categorical) -> Bag:
        """Hashes of a categorical feature."""
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        name, indicated = column.name, self.schema.indicators
        if name in self.times or name in indicated or column.edges:
            made = self._made(column)
            return made, np.ones(len(made), np.int64)
        values = self.chunk.table[name]
        if is_list(values.type):
            values = values.combine_chunks()
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
            return self._hashes(values.flatten(), column), lengths.astype(np.int64)
        if column.separator is None:
            return self._hashes(values, column), np.ones(len(values), np.int64)
        pieces = pc.split_pattern(self.text(name), column.separator)
        lengths = pc.list_value_length(pieces).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.utf8_trim_whitespace(pieces.flatten())
        # An empty cell is an empty bag, and two separators in a row enclose nothing.
        there = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        counts = np.bincount(row[there], minlength=len(lengths)).astype(np.int64)
        return self._hashes(flat.filter(pa.array(there)), column), counts

    def _made(self, column: Categorical) -> np.ndarray:
        """The ids of a feature that is made of a column: a part of a time, a bin, an indicator."""
        name = column.name
        if name in self.times:
            part = self.times[name]
            values, names = self._part(part), [str(i) for i in range(24)]
            places = np.where(np.isnan(values), len(names), values)
        elif name in self.schema.indicators:
            there = ~np.isnan(self.numbers(self.schema.indicators[name]))
            names, places = [INDICATED[0]], np.where(there, 0, 1)
        else:
            values = self.numbers(name)
            names = [f"bin {i}" for i in range(len(column.edges) + 1)]
            places = np.searchsorted(column.edges, values, side="right")
            places[np.isnan(values)] = len(names)
        return hash_ids(column.key, [*names, ""])[places.astype(np.int64)]

    def _hashes(self, values: Any, column: Categorical) -> np.ndarray:
        """The id of each value. Only the different values are hashed."""
        pc = need("pyarrow.compute")
        values = decoded(values)
        try:
            encoded = values.dictionary_encode()
            texts = to_text(encoded.dictionary, self.missing)
        except (UnreadableColumn, NotImplementedError) as error:
            known = isinstance(error, UnreadableColumn)
            what = error if known else f"holds {values.type}, not one value"
            raise self._unreadable(column.name, what) from error
        texts = spelled(texts, column.kind, column.name in self.schema.decimal_comma)
        # One more id than there are values, for what is missing.
        ids = np.concatenate([hash_ids(column.key, texts), hash_ids(column.key, [""])])
        codes = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
        return ids[codes]

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
        named = [Categorical(name, kind=self.schema.kind(name)) for name in clusters]
        codes = [self._hashes(table[cluster.name], cluster) for cluster in named]
        columns = np.stack(codes, 1) if codes else np.zeros((len(times), 1), np.int64)
        return torch.from_numpy(times), torch.from_numpy(columns)

    def group(self, column: Categorical) -> np.ndarray:
        """The group of each row, as a hash.

        Raises:
            DataError: the cells hold several values.
        """
        values, lengths = self.bag(column)
        if (lengths != 1).any():
            raise DataError(
                f"{self.chunk.file.path}: --group: the column '{column.name}' holds lists, where "
                "one value a row was wanted"
            )
        return values

    def weights(self, column: str) -> np.ndarray:
        """The rows' weights, float32; 0 where the row is broken."""
        weights = self.numbers(column)
        bad = ~(np.isfinite(weights) & (weights >= 0) & (weights <= MOST))
        self._mark(
            np.flatnonzero(bad),
            lambda i: (
                f"the weight '{column}' is {weights[i]:g}, where 0 or more was wanted"
                if np.isfinite(weights[i])
                else f"the weight '{column}' is missing"
            ),
        )
        return np.where(bad, 0.0, weights).astype(np.float32)

    def labels(self, task: Task) -> np.ndarray:
        """0 or 1, float64."""
        encoded = self.text(task.source).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        values = encoded.dictionary.to_pylist()
        comma = task.source in self.schema.decimal_comma
        labels = labels_of(task, values, comma)[codes] if values else np.zeros(0)

        def message(i: int) -> str:
            return describe_bad_label(task, values[codes[i]], values)

        self._mark(np.flatnonzero(np.isnan(labels)), message)
        return labels
