"""A sign of life on a terminal where a command has shown nothing yet."""

from __future__ import annotations

import sys
import threading

from .. import _startup

SECONDS = 1.5


class Waiting:
    """Says once what a command is doing if it has shown nothing for a second and a half.

    Only on a terminal: a log needs no line of a command that has nothing to say yet.

    Args:
        text: what is done at first; :meth:`now` says what comes next.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._timer: threading.Timer | None = None

    def now(self, text: str) -> None:
        """Something else is done from now on, and gets a line of its own where it takes long."""
        self.text = text
        self._stop()
        self._start()

    def _say(self) -> None:
        if not _startup.has_shown():
            print(f"{self.text} ...", file=sys.stderr, flush=True)

    def _start(self) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return
        self._timer = threading.Timer(SECONDS, self._say)
        self._timer.daemon = True
        self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Waiting:
        self._start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop()
