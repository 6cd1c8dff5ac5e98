"""A CSV or Parquet file as a stream of Arrow tables with numbered rows."""

from __future__ import annotations

import csv
import difflib
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .broken import BadRows
from .errors import DataError
from .packages import need
from .records import is_parquet, lines, open_bytes, raise_broken, records, sentence
from .values import NUMBER

CSV_BLOCK = 1 << 20  # bytes parsed at a time
PARQUET_ROWS = 65_536
LOOKED_AT = 30  # lines of CSV that tell a header from values
MARK = b"\xef\xbb\xbf"  # that some programs write before UTF-8
# A quoted field, line breaks and doubled quotes in it included, behind a delimiter.
QUOTED = rb'(?<![^%s\r\n])"(?:[^"]|"")*"'
OPENED = rb'(?<![^%s\r\n])"'


@dataclass
class Chunk:
    """Consecutive rows of one file, or some of them.

    Attributes:
        table: their columns.
        first: number of the first row, over all files.
        row: the same within its file.
        file: which it is of.
        places: of the rows among the consecutive ones, where it is some of them.
    """

    table: Any
    first: int
    row: int
    file: File
    places: np.ndarray | None = None

    def slice(self, start: int, stop: int) -> Chunk:
        """Rows from ``start`` to before ``stop``."""
        table = self.table.slice(start, stop - start)
        return Chunk(table, self.first + start, self.row + start, self.file)

    def take(self, places: np.ndarray) -> Chunk:
        """The rows in these places of a chunk of consecutive rows."""
        return Chunk(self.table.take(places), self.first, self.row, self.file, places)

    @property
    def numbers(self) -> np.ndarray:
        """The number of each row, over all files."""
        return self.first + (np.arange(self.table.num_rows) if self.places is None else self.places)

    def in_file(self, row: int) -> int:
        """The number within its file of a row of this chunk."""
        return self.row + (row if self.places is None else int(self.places[row]))

    def where(self, row: int) -> str:
        """File and line of a row of this chunk, for messages."""
        return self.file.where(self.in_file(row))


class _Piece(NamedTuple):
    """Where a piece of a CSV file starts: its byte, row, and record (broken ones counted too)."""

    offset: int
    row: int
    record: int


class File:
    """One CSV or Parquet file. CSV may be compressed with gzip, bzip2, xz or Zstandard.

    Args:
        path: path of the file. Its first bytes say what it is, whatever its name.
        names: names of the columns, for CSV without a header line.
        given: columns that the file does not hold, with the text (or None) of all their rows.

    Raises:
        DataError: the file is missing, empty, or not of its kind.
    """

    def __init__(
        self,
        path: str | Path,
        names: Sequence[str] = (),
        given: Mapping[str, str | None] | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such file")
        if self.path.stat().st_size == 0:
            raise DataError(f"{path}: empty file")
        self.is_parquet = is_parquet(self.path)
        self.delimiter, self.has_header = ",", True
        self._index: list[_Piece] = []
        self._rows = -1
        self.held = self._parquet_columns() if self.is_parquet else self._header(list(names))
        self.given = {k: v for k, v in (given or {}).items() if k not in self.held}
        self.columns = [*self.held, *self.given]
        twice = {c for c in self.held if self.held.count(c) > 1}
        if twice:
            hint = "" if self.is_parquet else "; if line 1 is no header, give --names A,B,..."
            what = f"column '{min(twice)}' is there more than once{hint}"
            raise DataError(f"{path}{'' if self.is_parquet else ':1'}: {what}")

    def _header(self, names: list[str]) -> list[str]:
        first, *rest = [*_first_lines(self.path), ""]
        self.delimiter, fields = _split(first, len(names))
        if not any(fields):
            raise DataError(f"{self.path}: no header line")
        if names:
            self.has_header = fields == names
            if len(fields) != len(names):
                what = f"{len(fields)} fields, where there are {len(names)} names"
                raise DataError(f"{self.path}:1: {what}")
            return names
        if _holds_values(fields, _rows(rest, self.delimiter)):
            shown = ", ".join(f"'{field}'" for field in fields[:3])
            raise DataError(
                f"{self.path}:1: no header line: the first line holds values ({shown}...); name "
                "its columns with --names A,B,..."
            )
        return fields

    def _parquet_columns(self) -> list[str]:
        return self._parquet().schema_arrow.names

    def _parquet(self) -> Any:
        pa, parquet = need("pyarrow"), need("pyarrow.parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable("Parquet", error) from error

    def _unreadable(self, kind: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: cannot be read as {kind}: {sentence(error)}")

    def check(self, column: str) -> None:
        """Refuse a column that is not there, with the nearest one.

        Raises:
            DataError: it is not.
        """
        if column not in self.columns:
            near = difflib.get_close_matches(column, self.columns, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.columns)}"
            raise DataError(f"{self.path}: no column '{column}'; {hint}")

    def where(self, row: int) -> str:
        """File and line of a row: slow and exact."""
        if self.is_parquet:
            return f"{self.path}, row {row + 1}"
        # Records of another length than the header's were skipped and not counted.
        whole = (r for r in records(self.path, self.delimiter) if len(r[1]) == len(self.held))
        at = row + self.has_header
        line = next((line for i, (line, _) in enumerate(whole) if i == at), None)
        return f"{self.path}:{line}" if line else f"{self.path}, row {row + 1}"

    def count(self, columns: Sequence[str], skip: bool) -> int:
        """How many rows it has: from the metadata of Parquet, by parsing one column of CSV."""
        if self.is_parquet:
            return self._parquet().metadata.num_rows
        if self._rows < 0:
            one = [name for name in columns if name in self.held][:1] or self.held[:1]
            self._rows = sum(table.num_rows for table in self._csv_tables(one, BadRows(skip), 0))
        return self._rows

    def tables(
        self, columns: Sequence[str], broken: BadRows, skip: int = 0, rows: int = PARQUET_ROWS
    ) -> Iterator[Any]:
        """Arrow tables of these columns, in order, of ``rows`` at most where it is Parquet.

        What lies before row ``skip`` is passed over where it can be (row groups of Parquet, pieces
        of a CSV file read before): a number in place of a table says how many rows.
        """
        held = [name for name in columns if name not in self.given] or self.held[:1]
        if self.is_parquet:
            tables = self._parquet_tables(held, skip, rows)
        else:
            tables = self._csv_tables(held, broken, skip)
        for table in tables:
            yield table if isinstance(table, int) else self._with_given(table, columns)

    def _with_given(self, table: Any, columns: Sequence[str]) -> Any:
        """The table with exactly these columns, those that the file does not hold included."""
        pa = need("pyarrow")
        for name, value in self.given.items():
            if name in columns:
                table = table.append_column(
                    name, pa.repeat(pa.scalar(value, pa.string()), len(table))
                )
        return table.select(list(columns))

    def _parquet_tables(self, columns: Sequence[str], skip: int, rows: int) -> Iterator[Any]:
        pa, file = need("pyarrow"), self._parquet()
        at, groups = 0, []
        for i in range(file.num_row_groups):
            held = file.metadata.row_group(i).num_rows
            if at + held > skip:
                groups.append(i)
            else:
                yield held
            at += held
        try:
            options = {"row_groups": groups, "columns": list(columns)}
            for batch in file.iter_batches(rows, **options) if groups else ():
                yield pa.table(batch)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable("Parquet", error) from error

    def _csv_tables(self, columns: Sequence[str], broken: BadRows, skip: int) -> Iterator[Any]:
        """Every column as text: what it holds is for the schema to say."""
        pa = need("pyarrow")
        try:
            if not self._index:
                self._index.append(_Piece(self._body(), 0, 0))
            # The last piece that starts at or before the row.
            at = bisect_right(self._index, max(0, skip), key=lambda piece: piece.row) - 1
            offset, row, record = self._index[at]
            if row:
                yield row
            for text in self._pieces(offset):
                table, bad = self._parse(text, columns, broken, record)
                if table.num_rows:
                    yield table
                row, record = row + table.num_rows, record + table.num_rows + bad
                offset += len(text)
                if offset > self._index[-1].offset:
                    self._index.append(_Piece(offset, row, record))
        except pa.ArrowException as error:
            raise_broken(self.path, self.delimiter, None if self.has_header else len(self.held))
            raise self._unreadable("CSV", error) from error
        except (OSError, EOFError) as error:
            raise self._unreadable("CSV", error) from error

    def _body(self) -> int:
        """The byte where the records begin."""
        at = 0
        with open_bytes(self.path) as file:
            for line in file:
                if not self.has_header:
                    return len(MARK) if line.startswith(MARK) else 0
                at += len(line)
                if line.strip():
                    break
        return at

    def _pieces(self, offset: int) -> Iterator[bytes]:
        """Whole records, about a block of bytes at a time."""
        with open_bytes(self.path, offset) as file:
            held = b""
            while block := file.read(CSV_BLOCK):
                held += block
                end = _last_record(held, self.delimiter.encode())
                if end:
                    yield held[:end]
                    held = held[end:]
            if held:
                yield held

    def _parse(
        self, text: bytes, columns: Sequence[str], broken: BadRows, record: int
    ) -> tuple[Any, int]:
        """A piece as an Arrow table, and how many records of it are broken."""
        pa, reader = need("pyarrow"), need("pyarrow.csv")
        bad: list[int] = []

        def handle(row: Any) -> str:
            if not broken.skip:
                return "error"
            number = record + row.number + 1  # a header is line 1
            what = "the header has" if self.has_header else "there are names for"
            found = f"{row.actual_columns} fields, where {what} {row.expected_columns}"
            message = f"{self.path}:{number - (not self.has_header)}: {found}"
            broken.add((self.path, "line", number), lambda: message)
            bad.append(number)
            return "skip"

        kinds = {name: pa.string() for name in columns}
        if not text.strip():
            return pa.table({name: pa.array([], kind) for name, kind in kinds.items()}), 0
        if not text.isascii():
            try:
                text.decode()
            except UnicodeDecodeError as error:
                # Arrow would print a traceback where the handler is to see a row that is no text.
                raise pa.ArrowInvalid(str(error)) from error
        table = reader.read_csv(
            pa.BufferReader(text),
            # One thread, or the handler is not told which row it has.
            reader.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self.held),
            reader.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=handle
            ),
            reader.ConvertOptions(column_types=kinds, include_columns=list(columns)),
        )
        return table, len(bad)


def _first_lines(path: Path) -> list[str]:
    """The first lines that are not blank, up to one that is no text."""
    found: list[str] = []
    try:
        for line in islice((line for line in lines(path) if line.strip()), LOOKED_AT):
            found.append(line)
    except DataError:
        if not found:
            raise
    return found


def _split(line: str, wanted: int) -> tuple[str, list[str]]:
    """The delimiter that gives a line the wanted number of fields, or the most, and the fields."""
    split = {d: (_rows([line], d) or [[]])[0] for d in ",\t;|"}  # the first of equals: a comma
    best = max(split, key=lambda d: (len(split[d]) == wanted, len(split[d])))
    return best, [field.strip() for field in split[best]]


def _rows(found: list[str], delimiter: str) -> list[list[str]]:
    """The fields of these lines. A quoted field that does not end in them is cut."""
    try:
        return [fields for fields in csv.reader(found, delimiter=delimiter) if fields]
    except csv.Error:
        return []


def _holds_values(first: list[str], rows: list[list[str]]) -> bool:
    """Whether a first line is no header: above every column of numbers it has a number."""
    number = re.compile(NUMBER)
    rows = [row for row in rows if len(row) == len(first)]
    columns = [[v.strip() for v in column if v.strip()] for column in zip(*rows, strict=True)]
    numeric = [bool(c) and all(map(number.match, c)) for c in columns]
    over = [field for field, is_number in zip(first, numeric, strict=False) if is_number and field]
    return bool(over) and all(map(number.match, over))


def _last_record(text: bytes, delimiter: bytes) -> int:
    """Where the last whole record of a text ends; 0 where there is none.

    An even number of quotes lies before the end of a record. A stray quote, in a field that is
    not quoted, upsets the count; the quoted fields are then looked for one by one.
    """
    end, quotes = len(text), text.count(b'"')
    while (start := text.rfind(b"\n", 0, end)) >= 0:
        quotes -= text.count(b'"', start, end)
        if quotes % 2 == 0:
            return start + 1
        end = start
    delimiter, best, at = re.escape(delimiter), -1, 0
    for quoted in re.finditer(QUOTED % delimiter, text):
        best = max(best, text.rfind(b"\n", at, quoted.start()))
        at = quoted.end()
    # Behind the last of them another one may have begun.
    begun = re.compile(OPENED % delimiter).search(text, at)
    best = max(best, text.rfind(b"\n", at, begun.start() if begun else len(text)))
    return best + 1
