"""Many files as one stream of chunks: in order, in blocks, or mixed from places all over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from .broken import BadRows
from .errors import DataError
from .files import PARQUET_ROWS, Chunk, File

PLACES = 32  # where a shuffled source is read at once; each holds a piece of its file in memory
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def part_files(path: str | Path) -> list[tuple[Path, dict[str, str | None]]]:
    """The files of a path, each with the columns that its folders give.

    A folder stands for the files in it and in its folders, in order of their names. Names that
    start with a dot or an underscore are markers of Spark and Hive and are left out. A folder
    called ``day=2024-12-31`` gives the rows of its files a column ``day``.

    Raises:
        DataError: a folder has no files, or its files alone do not make a table.
    """
    path = Path(path)
    if not path.is_dir():
        return [(path, {})]
    if (path / "_delta_log").is_dir():
        raise DataError(
            f"{path}: a Delta table, some of whose files may be out of date: write it as Parquet"
        )
    found = []
    for file in sorted(path.rglob("*")):
        below = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith((".", "_")) for part in below):
            pairs = [part.partition("=") for part in below[:-1]]
            found.append((file, {unquote(k): _folder_value(v) for k, equals, v in pairs if equals}))
    if not found:
        raise DataError(f"{path}: a folder without files")
    return found


def _folder_value(text: str) -> str | None:
    return None if text == HIVE_NULL else unquote(text)


class Source:
    """Files read one after the other.

    Args:
        paths: files, or folders of part files, all with the columns wanted.
        columns: to read.
        broken: what to do with rows that do not have the header's fields.
        names: names of the columns, for CSV files without a header line.

    Raises:
        DataError: a file or a column is missing.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        columns: Sequence[str],
        broken: BadRows | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.files = [File(part, names, given) for p in paths for part, given in part_files(p)]
        self.columns = list(dict.fromkeys(columns))
        self.broken = BadRows() if broken is None else broken
        self._counts: dict[File, int] = {}
        for file in self.files:
            for column in self.columns:
                file.check(column)

    def chunks(self, skip: int = 0, rows: int = PARQUET_ROWS) -> Iterator[Chunk]:
        """All rows from number ``skip`` on, in chunks of ``rows`` at most where it is Parquet."""
        first = 0
        for file in self.files:
            row = 0
            if self._counts and first + self._counts[file] <= skip:
                first += self._counts[file]
                continue
            for table in file.tables(self.columns, self.broken, skip - first, rows):
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

    def mixed(self, rows: int, start: int = 0) -> Iterator[list[Chunk]]:
        """The rows in blocks of about ``rows``, each gathered from places all over the files.

        The files are cut into :data:`PLACES` stretches, and a block takes its share of every one,
        so that it is like the whole even where the files are sorted. Each stretch is read
        forward, by a reader of its own. To get there, a reader passes over the rows before it in
        its row group of Parquet, and decompresses all that lies before it in a .gz file.

        Args:
            rows: of a block, at most.
            start: the block to begin with.
        """
        total = self.count()
        blocks = -(-total // rows)
        if blocks < 2:
            yield from self.blocks(rows, start)
            return
        if start >= blocks:
            return
        places = min(PLACES, total)
        edges = [total * i // places for i in range(places + 1)]
        cuts = [
            [low + (high - low) * b // blocks for b in range(blocks + 1)]
            for low, high in pairwise(edges)
        ]
        readers = [_Reader(self.chunks(cut[start], max(1, rows // places))) for cut in cuts]
        for b in range(start, blocks):
            taken = [r.take(cut[b + 1] - cut[b]) for r, cut in zip(readers, cuts, strict=True)]
            yield [chunk for chunks in taken for chunk in chunks]

    def count(self) -> int:
        """How many rows there are; CSV files are read once for it."""
        if not self._counts:
            skip = self.broken.skip
            self._counts = {f: f.count(self.columns, skip) for f in self.files}
        return sum(self._counts.values())


class _Reader:
    """Takes a stream of chunks by number of rows."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.chunks = chunks
        self.rest: Chunk | None = None

    def take(self, rows: int) -> list[Chunk]:
        """The next rows."""
        taken = []
        while rows:
            chunk = self.rest or next(self.chunks)
            some = min(rows, chunk.table.num_rows)
            taken.append(chunk.slice(0, some))
            rows -= some
            left = chunk.table.num_rows - some
            self.rest = chunk.slice(some, some + left) if left else None
        return taken
