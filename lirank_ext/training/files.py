"""CSV and Parquet files, one or many, as a stream of Arrow tables with numbered rows."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..datasets import DataError
from ..datasets.table import _lines, _raise_broken, _records, _sentence
from .packages import need

CSV_BLOCK = 4 << 20  # bytes parsed at a time
PARQUET_ROWS = 65_536
NAMED_AT_MOST = 5  # broken rows that a summary names


@dataclass
class Broken:
    """What to do with rows that cannot be read, and what was met."""

    skip: bool = False
    rows: set[tuple[Path, str, int]] = field(default_factory=set)
    examples: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.rows)

    def add(self, row: tuple[Path, str, int], message: Callable[[], str]) -> None:
        """Note a broken row, once however often it is read.

        Args:
            row: what tells it from all others.
            message: makes the sentence that names it; called for the first few alone.

        Raises:
            DataError: the row, where rows are not to be skipped.
        """
        if not self.skip:
            raise DataError(message())
        if row not in self.rows and len(self.examples) < NAMED_AT_MOST:
            self.examples.append(message())
        self.rows.add(row)

    def summary(self) -> str:
        """One sentence."""
        rows = "row was" if self.count == 1 else "rows were"
        return f"{self.count} broken {rows} skipped; the first: {'; '.join(self.examples)}"


@dataclass
class Chunk:
    """Consecutive rows of one file.

    Attributes:
        table: their columns.
        first: number of the first row, over all files.
        row: the same within its file.
        file: which it is of.
    """

    table: Any
    first: int
    row: int
    file: File

    def slice(self, start: int, stop: int) -> Chunk:
        """Rows from ``start`` to before ``stop``."""
        table = self.table.slice(start, stop - start)
        return Chunk(table, self.first + start, self.row + start, self.file)

    def where(self, row: int) -> str:
        """File and line of a row of this chunk, for messages."""
        return self.file.where(self.row + row)


class File:
    """One CSV or Parquet file.

    Args:
        path: ``.parquet`` or ``.pq`` is Parquet; everything else is CSV, ``.gz`` too.

    Raises:
        DataError: the file is missing, empty, or not of its kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such file")
        if self.path.stat().st_size == 0:
            raise DataError(f"{path}: empty file")
        self.is_parquet = self.path.suffix.lower() in (".parquet", ".pq")
        self.delimiter = ","
        self.columns = self._parquet_columns() if self.is_parquet else self._header()
        twice = {c for c in self.columns if self.columns.count(c) > 1}
        if twice:
            raise DataError(f"{path}:1: column '{min(twice)}' is there more than once")

    def _header(self) -> list[str]:
        header = next((line for line in _lines(self.path) if line.strip()), "")
        self.delimiter = max(",\t;|", key=header.count)  # the first of equals: a comma
        names = next(csv.reader([header], delimiter=self.delimiter), [])
        if not any(names):
            raise DataError(f"{self.path}: no header line")
        return names

    def _parquet_columns(self) -> list[str]:
        return self._parquet().schema_arrow.names

    def _parquet(self) -> Any:
        pa, parquet = need("pyarrow"), need("pyarrow.parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable("Parquet", error) from error

    def _unreadable(self, kind: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: cannot be read as {kind}: {_sentence(error)}")

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
        records = (r for r in _records(self.path, self.delimiter) if len(r[1]) == len(self.columns))
        line = next((line for i, (line, _) in enumerate(records) if i == row + 1), None)
        return f"{self.path}:{line}" if line else f"{self.path}, row {row + 1}"

    def tables(self, columns: Sequence[str], broken: Broken, skip: int = 0) -> Iterator[Any]:
        """Arrow tables of these columns, in order; row groups before row ``skip`` stay unread."""
        if self.is_parquet:
            yield from self._parquet_tables(columns, skip)
        else:
            yield from self._csv_tables(columns, broken)

    def _parquet_tables(self, columns: Sequence[str], skip: int) -> Iterator[Any]:
        pa, file = need("pyarrow"), self._parquet()
        at, groups = 0, []
        for i in range(file.num_row_groups):
            rows = file.metadata.row_group(i).num_rows
            if at + rows > skip:
                groups.append(i)
            else:
                yield rows  # so many rows were passed over
            at += rows
        try:
            options = {"row_groups": groups, "columns": list(columns)}
            for batch in file.iter_batches(PARQUET_ROWS, **options) if groups else ():
                yield pa.table(batch)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable("Parquet", error) from error

    def _csv_tables(self, columns: Sequence[str], broken: Broken) -> Iterator[Any]:
        """Every column as text: what it holds is for the schema to say."""
        pa, reader = need("pyarrow"), need("pyarrow.csv")

        def handle(row: Any) -> str:
            if not broken.skip:
                return "error"
            found = f"{row.actual_columns} fields, where the header has {row.expected_columns}"
            message = f"{self.path}:{row.number}: {found}"
            broken.add((self.path, "line", row.number), lambda: message)
            return "skip"

        options = {
            # One thread, or the handler is not told which row it has.
            "read_options": reader.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
            "parse_options": reader.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=handle
            ),
            "convert_options": reader.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)
            ),
        }
        try:
            for batch in reader.open_csv(self.path, **options):
                yield pa.table(batch)
        except pa.ArrowException as error:
            _raise_broken(self.path, self.delimiter)
            raise self._unreadable("CSV", error) from error
        except OSError as error:
            raise self._unreadable("CSV", error) from error


class Source:
    """Files read one after the other.

    Args:
        paths: files, all with the columns wanted.
        columns: to read.
        broken: what to do with rows that do not have the header's fields.

    Raises:
        DataError: a file or a column is missing.
    """

    def __init__(
        self, paths: Sequence[str | Path], columns: Sequence[str], broken: Broken | None = None
    ) -> None:
        self.files = [File(path) for path in paths]
        self.columns = list(dict.fromkeys(columns))
        self.broken = Broken() if broken is None else broken
        for file in self.files:
            for column in self.columns:
                file.check(column)

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        """All rows from number ``skip`` on."""
        first = 0
        for file in self.files:
            row = 0
            for table in file.tables(self.columns, self.broken, skip - first):
                if isinstance(table, int):
                    row += table
                    continue
                chunk = Chunk(table, first + row, row, file)
                row += table.num_rows
                if first + row > skip:
                    yield chunk.slice(max(0, skip - chunk.first), table.num_rows)
            first += row

    def blocks(self, rows: int, start: int = 0) -> Iterator[list[Chunk]]:
        """The rows cut into blocks of ``rows``, from block ``start`` on; the last may be short."""
        held: list[Chunk] = []
        room = rows
        for chunk in self.chunks(start * rows):
            at = 0
            while at < chunk.table.num_rows:
                stop = min(chunk.table.num_rows, at + room)
                held.append(chunk.slice(at, stop))
                room -= stop - at
                at = stop
                if not room:
                    yield held
                    held, room = [], rows
        if held:
            yield held

    def count(self) -> int:
        """How many rows there are: from the metadata of Parquet, by reading one column of CSV."""
        total = 0
        for file in self.files:
            if file.is_parquet:
                total += file._parquet().metadata.num_rows
                continue
            quiet = Broken(self.broken.skip)
            one = self.columns[:1] or file.columns[:1]
            total += sum(table.num_rows for table in file.tables(one, quiet))
        return total
