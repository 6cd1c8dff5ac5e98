"""A schema for files that come without one: what each column holds, how large the tables are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..models import Categorical, Schema, Table, Task
from .broken import Broken
from .columns import ColumnReader
from .errors import DataError
from .files import Chunk
from .packages import need
from .source import Source
from .values import LABEL_NAMES, MOSTLY, NUMBER, is_id

SAMPLE_ROWS = 500_000
MAX_VALUES = 128  # a number with no more distinct values also gets an id per value
NUM_BINS = 32  # any other also gets an id per quantile bin
PADDED = r"^0\d+$"
FILLED = 0.5  # whole numbers that fill so much of their range are codes, not amounts


@dataclass
class Inferred:
    """Columns of some files, table sizes that suit them, and how many distinct ids there are."""

    schema: Schema
    tables: dict[str, Table]
    ids: int


def infer(
    paths: Sequence[str | Path],
    labels: Sequence[str | Task],
    *,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
    broken: Broken | None = None,
) -> Inferred:
    """Look at the first half million rows and say what each column is.

    Text is categorical. Numbers are numeric, and also ids: one for each value where there are at
    most 128, else one for each of 32 quantile bins. Whole numbers in a column called "id" or
    "user_id", that fill their range as codes do (0, 1, 2...), or of which one is written with a
    zero in front (01060), are ids only.

    Args:
        paths: the files.
        labels: label columns, ``NAME`` or ``NAME=VALUE`` (1 where the column holds VALUE),
            or whole tasks.
        numeric, categorical: columns to read as such, whatever they look like.
        ignore: columns to leave out.
        broken: what to do with broken rows.

    Raises:
        DataError: a column is missing, or nothing is left to learn from.
    """
    source = Source(paths, [], broken)
    file = source.files[0]
    tasks = _tasks(file, labels)
    for column in (*numeric, *categorical, *ignore):
        file.check(column)
    left_out = {*ignore, *(t.source for t in tasks)}
    columns = [c for c in file.columns if c not in left_out]
    if not columns:
        raise DataError(f"{file.path}: no column to learn the label '{tasks[0].source}' from")
    source.columns = columns
    sample = _sample(source)
    schema, ids = Schema(tasks=tasks), 0
    for column in columns:
        wanted = "id" if column in categorical else "number" if column in numeric else None
        ids += _add(schema, column, _Looks(sample, column), wanted)
    return Inferred(schema, {"ids": table_for(ids)} if schema.categorical else {}, ids)


def table_for(ids: int) -> Table:
    """Size of a table for so many distinct ids.

    Up to 250,000 ids get four rows each in both quotient tables, where hardly two ids meet twice;
    beyond that, the compression grows so that a table stays at a million rows.
    """
    buckets = max(1024, 4 * ids)
    return Table(buckets, max(1, -(-buckets // 1_000_000)))


def _tasks(file: Any, labels: Sequence[str | Task]) -> list[Task]:
    if not labels:
        found = next((c for c in file.columns if c.lower() in LABEL_NAMES), None)
        if found is None:
            columns = ", ".join(file.columns)
            raise DataError(f"{file.path}: name the label column with --label (one of {columns})")
        labels = [found]
    tasks = []
    for label in labels:
        if isinstance(label, Task):
            for column in (label.source, *(label.dwell.clusters if label.dwell else ())):
                file.check(column)
            tasks.append(label)
            continue
        name, equals, value = label.partition("=")
        if label in file.columns or not equals:
            file.check(label)
            tasks.append(Task(label))
        else:
            file.check(name)
            tasks.append(Task(label, name, value))
    return tasks


def _sample(source: Source) -> Chunk:
    pa = need("pyarrow")
    chunks = list(islice(source.blocks(SAMPLE_ROWS), 1))
    if not chunks:
        raise DataError(f"{source.files[0].path}: no rows")
    table = pa.concat_tables([c.table for c in chunks[0]], promote_options="permissive")
    return Chunk(table, 0, 0, source.files[0])


class _Looks:
    """What a column of the sample holds."""

    def __init__(self, sample: Chunk, column: str) -> None:
        pa, pc = need("pyarrow"), need("pyarrow.compute")
        kind = sample.table[column].type
        self.is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        self.is_category = pa.types.is_dictionary(kind)
        reader = ColumnReader(sample)
        if self.is_list:
            flat = sample.table[column].combine_chunks().flatten()
            self.distinct, self.values = pc.count_distinct(flat).as_py(), None
            return
        text = reader._text(sample.table[column], column)
        self.distinct = pc.count_distinct(text).as_py()
        there = pc.not_equal(text, "").to_numpy(zero_copy_only=False)
        number = pc.match_substring_regex(text, NUMBER).to_numpy(zero_copy_only=False)
        # A zero in front, as in the postal code 01060: no amount is written so.
        self.padded = bool(pc.any(pc.match_substring_regex(text, PADDED)).as_py())
        self.values = None
        if there.any() and number.sum() >= MOSTLY * there.sum():
            numbers = text.filter(pa.array(number)).cast(pa.float64()).to_numpy()
            self.values = numbers[np.isfinite(numbers)]

    def is_code(self, column: str) -> bool:
        """Names written as whole numbers."""
        values = self.values
        if self.padded or self.is_category:
            return True
        if np.any(values != np.floor(values)):
            return False
        if is_id(column, values):
            return True
        distinct = len(np.unique(values))
        return distinct > MAX_VALUES and distinct >= FILLED * (values.max() - values.min() + 1)

    def is_spread(self) -> bool:
        """Over orders of magnitude: the logarithm is read."""
        low, middle, high = np.quantile(np.abs(self.values), [0.05, 0.5, 0.99])
        return high > 100 and high > 20 * max(middle, low, 1e-9)


def _add(schema: Schema, column: str, looks: _Looks, wanted: str | None) -> int:
    """Add a column; how many distinct ids it brings."""
    numbers = looks.values is not None and len(looks.values) > 0
    if wanted == "id" or (wanted is None and (not numbers or looks.is_code(column))):
        schema.categorical.append(Categorical(column))
        return looks.distinct
    schema.numeric.append(column)
    if wanted == "number" or not numbers:
        return 0
    if looks.is_spread():
        schema.log.append(column)
    if looks.distinct <= MAX_VALUES:
        schema.categorical.append(Categorical(column))
        return looks.distinct
    edges = np.unique(np.quantile(looks.values, np.arange(1, NUM_BINS) / NUM_BINS))
    schema.categorical.append(Categorical(column, edges=[float(e) for e in edges]))
    return len(edges) + 2
