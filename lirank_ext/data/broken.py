"""Rows that cannot be read: refused, or counted and passed over."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import DataError

NAMED_AT_MOST = 5  # broken rows that a summary names


@dataclass
class BadRows:
    """What to do with rows that cannot be read, and what was met."""

    skip: bool = False
    rows: set[tuple[Path, str, int]] = field(default_factory=set)
    examples: list[str] = field(default_factory=list)
    _records: dict[Path, list[int]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.rows)

    def add(self, row: tuple[Path, str, int], message: Callable[[], str]) -> None:
        """Note a broken row, once however often it is read.

        Args:
            row: what tells it from all others: its file, and either "row" with its number or
                "line" with that of a record that has not the header's fields and is no row; the
                header is line 1.
            message: makes the sentence that names it; called only for the first few.

        Raises:
            DataError: the row, where rows are not to be skipped.
        """
        if not self.skip:
            raise DataError(message())
        if row in self.rows:
            return
        if len(self.examples) < NAMED_AT_MOST:
            self.examples.append(message())
        self.rows.add(row)
        path, kind, number = row
        if kind == "line":
            insort(self._records.setdefault(path, []), number - 2)

    def lost(self, path: Path, first: int) -> list[int]:
        """Places of a file's records that are no rows, from ``first`` on; its first record is 0."""
        places = self._records.get(path, [])
        return places[bisect_left(places, first) :]

    def summary(self) -> str:
        """One sentence."""
        rows = "row was" if self.count == 1 else "rows were"
        return f"{self.count} broken {rows} skipped; the first: {'; '.join(self.examples)}"
