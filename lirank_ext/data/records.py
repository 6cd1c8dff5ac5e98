"""The records of a CSV file one by one: slow and exact, for headers and messages."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import DataError


def raise_broken(path: Path, delimiter: str) -> None:
    """Find the first broken record of a file and raise it by line."""
    wanted = None
    for line, fields in records(path, delimiter, strict=True):
        wanted = wanted or len(fields)
        if len(fields) != wanted:
            raise DataError(f"{path}:{line}: {len(fields)} fields, where the header has {wanted}")


def records(path: Path, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record: slow and exact, for messages alone."""
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
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read ({error})") from error


def open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def sentence(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
