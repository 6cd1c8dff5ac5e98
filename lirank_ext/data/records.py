"""The bytes of a file, compressed or not, and the records of a CSV file one by one.

Reading one record at a time is slow and exact. It is used for headers and messages.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError
from .packages import need

SKIP = 1 << 20  # bytes decompressed at a time where a place is looked for
PARQUET = b"PAR1"
# The first bytes of compressed files, whatever their names, and how to open them.
PACKED: dict[bytes, Callable[[Path, str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda path, _: io.BufferedReader(_Zstandard(path)),
}
# Files that are neither CSV nor Parquet, by their first bytes.
FOREIGN = {
    b"PK\x03\x04": "a spreadsheet or a zip archive: save it as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as CSV",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"ORC": "an ORC file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"SQLite format": "an SQLite database: export the table as CSV",
    b"{": "JSON: write it as CSV or Parquet",
    b"[{": "JSON: write it as CSV or Parquet",
}


class _Zstandard(io.RawIOBase):
    """A .zst file. Arrow decompresses it, as Python has no Zstandard before 3.14."""

    def __init__(self, path: Path) -> None:
        pa = need("pyarrow")
        self.stream = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its first bytes or its name.

    Raises:
        DataError: it is neither Parquet nor text.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    for begins, what in FOREIGN.items():
        if start.startswith(begins):
            raise DataError(f"{path}: {what}")
    return start.startswith(PARQUET) or path.suffix.lower() in (".parquet", ".pq")


def open_bytes(path: Path, offset: int = 0) -> IO[bytes]:
    """A file's bytes, decompressed if need be, from an offset on."""
    with open(path, "rb") as file:
        start = file.read(8)
    packed = next((p for begins, p in PACKED.items() if start.startswith(begins)), None)
    file = (packed or Path.open)(path, "rb")
    if packed is None:
        file.seek(offset)
        return file
    while offset > 0:
        offset -= len(file.read(min(offset, SKIP))) or offset
    return file


def raise_broken(path: Path, delimiter: str, wanted: int | None = None) -> None:
    """Find the first broken record of a file and raise it by line.

    Args:
        path: of the file.
        delimiter: the character between fields.
        wanted: number of fields of a record; None takes that of the first record.
    """
    what = "the header has" if wanted is None else "there are names for"
    for line, fields in records(path, delimiter, strict=True):
        wanted = wanted or len(fields)
        if len(fields) != wanted:
            raise DataError(f"{path}:{line}: {len(fields)} fields, where {what} {wanted}")


def records(path: Path, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record."""
    reader = csv.reader(lines(path), delimiter=delimiter, strict=strict)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: broken row ({error})") from error


def lines(path: Path) -> Iterator[str]:
    """The lines of a file; one that is no text is an error with its number."""
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    _check_ends(path, line)
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read ({error})") from error


def _check_ends(path: Path, line: bytes) -> None:
    """Refuse lines that end with a carriage return only: Arrow and the pieces need newlines."""
    if b"\r" in line.rstrip(b"\r\n"):
        raise DataError(f"{path}:1: lines end with a carriage return alone: save it with newlines")


def sentence(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
