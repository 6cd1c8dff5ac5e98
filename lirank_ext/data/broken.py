"""Rows that cannot be read: refused, or counted and passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import DataError

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
