"""How far some work is, on stderr: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from . import _startup

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts steps of some work and shows how many are done; a context manager.

    A file or a pipe gets no bar: redrawn many times a second it would fill a log with one endless
    line.

    Args:
        what: the work, in a word.
        total: number of steps; None where it is not known.
        unit: what a step is, in the plural.
        done: steps that were done before.
        shown: False shows nothing.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "steps",
        done: int = 0,
        shown: bool = True,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.figures: dict[str, str] = {}
        self.shown = shown
        self._last = time.monotonic()
        self._bar: tqdm | None = self._open_bar() if shown and _has_bars() else None

    def _open_bar(self) -> tqdm:
        from tqdm import tqdm

        _startup.shows()

        return tqdm(
            desc=self.what,
            total=self.total,
            initial=self.done,
            unit=f" {self.unit}",
            leave=False,
            mininterval=0.3,
        )

    def update(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self.shown and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            _startup.shows()
            print(self.line(), file=sys.stderr, flush=True)

    def show(self, figures: Mapping[str, str]) -> None:
        """Show these figures beside the count from now on."""
        self.figures.update(figures)
        if self._bar is not None:
            self._bar.set_postfix(self.figures)

    def line(self) -> str:
        """The state in words."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        parts = [f"{self.what}: {count} {self.unit}"]
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.figures.items())])

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each counted as a step once it is done with; closes after the last."""
        try:
            for item in items:
                yield item
                self.update()
        finally:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _has_bars() -> bool:
    """Whether stderr is a terminal that can redraw a line, and tqdm is installed."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return importlib.util.find_spec("tqdm") is not None
