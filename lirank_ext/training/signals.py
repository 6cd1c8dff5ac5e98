"""Ctrl-C and SIGTERM end a training after a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from ..errors import UserError


class Interrupted(UserError):
    """A signal ended the training after a checkpoint.

    Attributes:
        number: the signal's.
        exit_code: what a shell reports for a process that this signal ended.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """Notes a first SIGINT or SIGTERM while it is entered; a second one has its usual effect.

    Python hands signals to the main thread only; in any other thread nothing is changed.

    Attributes:
        received: number of the signal; 0 before one comes.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.getsignal(n) for n in self.NUMBERS}
            for number in self.NUMBERS:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])
