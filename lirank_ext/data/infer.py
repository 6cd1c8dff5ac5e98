"""A schema for files that come without one: what each column holds, how large the tables are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..models import Categorical, Scaling, Schema, Table, Task, TimePart
from ..models.schema import MISSING
from .broken import BadRows
from .columns import ColumnReader
from .errors import DataError
from .files import Chunk
from .labels import parse_labels
from .profile import MAX_VALUES, Profile, profile
from .reading import Reading
from .source import Source
from .times import parts

SAMPLE_ROWS, SAMPLE_CELLS = 500_000, 50_000_000  # whichever are fewer
NUM_BINS = 32  # a number with many values also gets an id per quantile bin
ROW_LABELS = re.compile(r"^$|^__index_level_\d+__$|^Unnamed: \d+$")  # as pandas calls them
FEW_IDS = 240_000  # rows up to which a table has room for ids that meet no other
UNIQUE = 1000  # rows with a value of their own each, from which nothing is learnt
HALF = 0.5  # a column of text with so many numbers may be meant otherwise
FAR = 1000.0  # columns whose middle is so many times their spread lose digits in float32
SMALL, LARGE = 1e-3, 1e6  # spreads that batch norm takes as they are
HUGE = 1e30  # logarithms are taken of smaller numbers


@dataclass
class Column:
    """How a column is read.

    Attributes:
        name: name of the column.
        role: "label", "weight", "number", "id", "time", "ids" (several in a cell), or "left out".
        why: the reason for the role.
        example: one value of the column.
        distinct, missing: counts of the sample's different values and of its missing ones.
    """

    name: str
    role: str
    why: str
    example: str = ""
    distinct: int = 0
    missing: int = 0


HEADINGS = ("column", "read as", "because", "example", ">distinct", ">missing")


def cells(column: Column) -> list[str]:
    """A row of a table under :data:`HEADINGS`."""
    counts = (f"{column.distinct:,}", f"{column.missing:,}")
    return [column.name or "(no name)", column.role, column.why, column.example, *counts]


@dataclass
class Inferred:
    """What files hold.

    Attributes:
        schema: the columns to read.
        tables: sizes of the embedding tables that suit the number of ids.
        ids: number of different ids.
        rows: number of rows that were looked at; all of them unless there are very many.
        columns: how each column is read, those that are left out included.
    """

    schema: Schema
    tables: dict[str, Table] = field(default_factory=dict)
    ids: int = 0
    rows: int = 0
    columns: list[Column] = field(default_factory=list)


def infer(
    paths: Sequence[str | Path],
    labels: Sequence[str | Task] | None,
    reading: Reading | None = None,
    *,
    broken: BadRows | None = None,
) -> Inferred:
    """Look at up to half a million rows and decide what each column is.

    - Text, truth values and categories are ids. Lists and text with bars (``a|b``) are several ids.
    - Numbers are read as numbers and also as ids: one id for each value if there are at most 128
      values, else one for each of 32 quantile bins.
    - Whole numbers are read only as ids if they are names. They are names if the column is called
      "id" or "user_id", if they have more than 15 digits, if they fill their range as codes do
      (0, 1, 2...), if they are far apart and repeat often, or if one has a leading zero (01060).
    - Dates and time stamps give the hour, the day of the week and the age.
    - Columns that say nothing are left out: those with a single value, the row labels of a data
      frame, row counters, and names or codes that are different in every row.

    Args:
        paths: the files.
        labels: label columns; see :func:`lirank_ext.data.labels.parse_labels`.
        reading: what the user says about the columns.
        broken: what to do with broken rows.

    Raises:
        DataError: a column is missing or cannot be read, or nothing is left to learn from.
    """
    reading = reading or Reading()
    source = Source(paths, [], broken, reading.names)
    file = source.files[0]
    missing = MISSING if reading.missing is None else reading.missing
    schema = Schema(missing=list(missing), names=list(reading.names))
    schema.tasks = parse_labels(file, labels)
    schema.weight, schema.group = reading.weight, reading.group
    named = [name for name in (reading.weight, reading.group) if name is not None]
    for column in (*reading.numeric, *reading.categorical, *reading.ignore, *reading.lists, *named):
        file.check(column)
    label_columns = {task.source for task in schema.tasks}
    if reading.weight in label_columns:
        raise DataError(f"--weight: the column '{reading.weight}' is the label")
    left_out = {*reading.ignore, *label_columns, reading.weight}
    wanted = [c for c in file.columns if c not in left_out]
    if not wanted:
        raise DataError(f"{file.path}: no column to learn from, only labels")
    source = Source(paths, [*wanted, *label_columns], broken, reading.names)
    chunks, complete = _sample(source)
    found = Inferred(schema, rows=sum(chunk.table.num_rows for chunk in chunks))
    for task in schema.tasks:
        found.columns.append(_label(chunks, task, schema, bool(labels)))
    for name in reading.ignore:
        found.columns.append(Column(name, "left out", "--ignore"))
    if reading.weight is not None:
        found.columns.append(Column(reading.weight, "weight", "--weight"))
    for seen in _profiles(chunks, wanted, schema):
        if seen.name in reading.lists:
            seen.kind, seen.separator = "text", reading.lists[seen.name]
            _Adder(found, seen, complete).add_list("--list")
            continue
        numeric, categorical = (seen.name in n for n in (reading.numeric, reading.categorical))
        _Adder(found, seen, complete).add(numeric, categorical)
    if not schema.columns:
        reasons = "; ".join(f"'{c.name}' {c.why}" for c in found.columns if c.role == "left out")
        raise DataError(f"{file.path}: no column is left to learn from: {reasons}")
    if schema.categorical:
        found.tables["ids"] = table_for(found.ids)
    return found


def table_for(ids: int) -> Table:
    """Size of a table for so many distinct ids.

    Up to 15,000 ids get sixteen rows each in both quotient tables, where hardly two ids meet at
    all, and up to 250,000 ids four, where hardly two meet twice. Beyond that, the compression grows
    so that a table stays at a million rows.
    """
    buckets = max(1024, min(16 * ids, FEW_IDS), 4 * ids)
    return Table(buckets, max(1, -(-buckets // 1_000_000)))


def _sample(source: Source) -> tuple[list[Chunk], bool]:
    """The first rows of every file, and whether these are all there are."""
    rows = min(SAMPLE_ROWS, SAMPLE_CELLS // len(source.columns))
    share, complete = max(1, rows // len(source.files)), True
    chunks: list[Chunk] = []
    for file in source.files:
        row = 0
        for table in file.tables(source.columns, source.broken):
            if row >= share:
                complete = False
                break
            complete &= row + table.num_rows <= share
            chunks.append(Chunk(table.slice(0, share - row), 0, row, file))
            row += table.num_rows
    if not any(chunk.table.num_rows for chunk in chunks):
        raise DataError(f"{source.files[0].path}: no rows")
    return chunks, complete


def _label(chunks: list[Chunk], task: Task, schema: Schema, named: bool) -> Column:
    """How a label is read; ``named``: the user says which column it is."""
    texts = [ColumnReader(chunk, schema).text(task.source) for chunk in chunks]
    values = {value for text in texts for value in text.unique().to_pylist()} - {""}
    absent = sum(text.to_pylist().count("") for text in texts)
    wanted = task.threshold or (task.positive and f"'{task.positive}'")
    why = f"1 where it is {wanted}" if wanted else "--label" if named else "its name"
    why = "--long-dwell" if task.dwell else why
    return Column(task.source, "label", why, min(values, default=""), len(values), absent)


def _profiles(chunks: list[Chunk], columns: Sequence[str], schema: Schema) -> list[Profile]:
    """The columns' profiles. A decimal mark that is not clear is that of the other columns."""
    seen = [profile(chunks, column, schema) for column in columns]
    marks = {p.mark for p in seen if p.kind == "number"} - {"", "either"}
    if marks != {"comma"}:
        return seen
    again = [p.kind == "number" and p.mark == "either" for p in seen]
    return [
        profile(chunks, p.name, schema, comma=True) if a else p
        for p, a in zip(seen, again, strict=True)
    ]


class _Adder:
    """Adds one column to a schema."""

    def __init__(self, found: Inferred, seen: Profile, complete: bool) -> None:
        self.found, self.schema, self.seen = found, found.schema, seen
        self.complete = complete

    def add(self, as_number: bool, as_id: bool) -> None:
        """Decide how the column is read, and note why."""
        seen = self.seen
        if as_id:
            self._add_id("--categorical", "ids" if seen.kind == "list" else "id")
        elif as_number:
            self._add_number("--numeric", ids=False)
        elif why := self._why_left_out():
            self._note("left out", why)
        elif seen.problem:
            raise DataError(
                f"column '{seen.name}': {seen.problem}, as in '{seen.example}': write them as "
                f"2024-12-31, or give --categorical '{seen.name}' or --ignore '{seen.name}'"
            )
        elif seen.kind == "time":
            self._add_times()
        elif seen.kind == "list":
            self._add_id("lists", "ids")
        elif seen.separator is not None:
            self.add_list("text with bars")
        elif seen.kind != "number":
            self._add_id("truth values" if seen.kind == "boolean" else self._why_text(), "id")
        elif why := seen.why_code():
            self._add_id(why, "id")
        else:
            self._add_number("numbers", ids=True)

    def add_list(self, why: str) -> None:
        """Add a column whose cells hold several values."""
        seen = self.seen
        self.schema.categorical.append(Categorical(seen.name, separator=seen.separator))
        self.found.ids += seen.distinct + 1
        self._note("ids", why)

    def _why_text(self) -> str:
        if self.seen.number_share < HALF:
            return "text"
        return f"text, though {self.seen.number_share:.0%} are numbers (--missing, --numeric)"

    def _note(self, role: str, why: str) -> None:
        seen = self.seen
        column = Column(seen.name, role, why, seen.example, seen.distinct, seen.missing)
        self.found.columns.append(column)

    def _why_left_out(self) -> str:
        seen = self.seen
        if ROW_LABELS.search(seen.name):
            return "row labels of a data frame"
        if not seen.distinct:
            return "every value is missing"
        if seen.distinct == 1 and not seen.missing and seen.kind != "list":
            return "the same value in every row"
        if seen.counts_up:
            return "counts the rows"
        present = seen.rows - seen.missing
        names = seen.kind == "text" or (seen.kind == "number" and bool(seen.why_code()))
        if self.complete and names and seen.distinct == present >= UNIQUE:
            return "a value of its own in every row"
        return ""

    def _add_id(self, why: str, role: str) -> None:
        seen = self.seen
        self.schema.categorical.append(Categorical(seen.name, kind=seen.id_kind))
        if seen.comma and seen.kind == "number":
            self.schema.decimal_comma.append(seen.name)
        self.found.ids += seen.distinct + 1
        self._note(role, why)

    def _add_number(self, why: str, ids: bool) -> None:
        seen, schema = self.seen, self.schema
        schema.numeric.append(seen.name)
        if seen.comma and seen.kind == "number":
            schema.decimal_comma.append(seen.name)
            why += ", with a decimal comma"
        if len(seen.numbers):
            if not ids:
                self._scale()
            elif seen.is_spread():
                schema.log.append(seen.name)
                why += ", over orders of magnitude"
                self._scale_log()
            else:
                self._scale()
        if ids:
            self._add_values()
        elif seen.missing:
            self._add_indicator(seen.name)
        self._note("number", why)

    def _add_values(self) -> None:
        """Add the ids of a number: one for each value or bin, and one for a missing value."""
        seen = self.seen
        if seen.distinct <= MAX_VALUES:
            self.schema.categorical.append(Categorical(seen.name, kind="number"))
            self.found.ids += seen.distinct + 1
            return
        edges = np.unique(np.quantile(seen.numbers, np.arange(1, NUM_BINS) / NUM_BINS))
        self.schema.categorical.append(Categorical(seen.name, edges=edges.tolist()))
        self.found.ids += len(edges) + 2

    def _add_indicator(self, column: str) -> None:
        name = f"{column} is there"
        self.schema.indicators[name] = column
        self.schema.categorical.append(Categorical(name))
        self.found.ids += 2

    def _scale(self) -> None:
        """Scale a column whose numbers float32 or batch norm would lose."""
        low, middle, high = np.quantile(self.seen.numbers, [0.05, 0.5, 0.95])
        spread = float(high - low) or float(np.ptp(self.seen.numbers))
        if not 0 < spread < np.inf:
            return
        if abs(middle) > FAR * spread or not SMALL < spread < LARGE:
            self.schema.scaling[self.seen.name] = Scaling(float(middle), spread)

    def _scale_log(self) -> None:
        most = float(np.abs(self.seen.numbers).max())
        if most > HUGE:
            self.schema.scaling[self.seen.name] = Scaling(scale=most / HUGE)

    def _add_times(self) -> None:
        """Add the parts of the times that differ between rows."""
        seen, schema = self.seen, self.schema
        origin = float(seen.moments.max())
        varying = [
            name
            for name, values in parts(seen.moments, ("hour", "weekday", "age"), origin).items()
            if len(np.unique(values)) > 1
        ]
        for part in varying:
            name = f"{seen.name} {part}"
            schema.times.append(TimePart(name, seen.name, part, seen.form, origin))
            if part == "age":
                schema.numeric.append(name)
            else:
                schema.categorical.append(Categorical(name))
                self.found.ids += 25 if part == "hour" else 8
        if varying == ["age"] and seen.missing:
            self._add_indicator(seen.name)
        self._note("time", ", ".join(varying))
