"""The model that a worker serves: loaded whole, exchanged whole, read by one thread.

One thread computes. Everything that touches the weights is a job of this thread: scoring, taking
in changed rows, and the exchange of the model. So no request sees half of a change, without a lock
in the way of requests. Another thread loads the next model meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import updates

from lirank_ext.data.json_rows import parse_rows
from lirank_ext.errors import UserError
from lirank_ext.training.serving import RowScorer

log = logging.getLogger("uvicorn.error")
Result = TypeVar("Result")


class Busy(Exception):
    """More requests wait than the worker takes."""


@dataclass
class Version:
    """A loaded model. ``folder`` is where it really lies, behind all links."""

    folder: Path
    scorer: RowScorer
    applied: updates.Applied = field(default_factory=updates.Applied)

    @property
    def name(self) -> str:
        return self.folder.name


def load(link: Path, mmap: bool) -> Version:
    """The model behind a link, with the rows that have changed since.

    The link is followed once. What it points to later is another model.
    """
    folder = link.resolve()
    version = Version(folder, RowScorer(folder, mmap=mmap))
    version.applied.take(version.scorer.model, folder)
    return version


class Served:
    """Serves ``root/current``, a link to the folder of a model.

    Args:
        root: the folder of models.
        mmap: share the weights with the other workers.
        poll: seconds between two looks for another model or changed rows.
        most: requests that may wait.
        count: called with the name of an event: "swap", "failed swap", "update", "failed update".
    """

    def __init__(
        self,
        root: Path,
        mmap: bool = True,
        poll: float = 0.5,
        most: int = 64,
        count: Callable[[str], None] = lambda event: None,
    ) -> None:
        self.link, self.mmap, self.poll, self.most, self.count = (
            root / "current", mmap, poll, most, count,
        )  # fmt: skip
        self.version = load(self.link, mmap)
        self._refused: Path | None = None  # a folder that could not be loaded
        self._thread = ThreadPoolExecutor(1, "compute")
        self._waiting = 0

    async def _compute(self, job: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)

    async def score(self, body: bytes) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            DataError: a row cannot be read.
            Busy: too many requests wait.
        """
        if self._waiting >= self.most:
            raise Busy(f"{self.most} requests wait already")
        self._waiting += 1
        try:
            return await self._compute(self._score, body)
        finally:
            self._waiting -= 1

    def _score(self, body: bytes) -> dict[str, Any]:
        version = self.version
        found = version.scorer.score(parse_rows(body)).tolist()
        return {"model": version.name, "tasks": version.scorer.tasks, "probabilities": found}

    async def update(self, table: str, rows: torch.Tensor, values: torch.Tensor) -> str:
        """Change rows of a table, in this worker at once and in the others at their next look.

        Raises:
            UpdateError: they do not fit the table.
        """
        return await self._compute(self._update, table, rows, values)

    def _update(self, table: str, rows: torch.Tensor, values: torch.Tensor) -> str:
        version = self.version
        updates.fitted(version.scorer.model, table, rows, values)  # refuses what does not fit
        path = updates.write(version.folder, table, rows, values)
        self._take_updates()
        return path.name

    def _take_updates(self) -> None:
        version = self.version
        for _ in range(version.applied.take(version.scorer.model, version.folder)):
            self.count("update")
        for sentence in version.applied.failed:
            log.error("update not taken in: %s", sentence)
            self.count("failed update")
        version.applied.failed.clear()

    def _exchange(self, version: Version) -> None:
        self.version = version

    async def look(self) -> None:
        """Take in changed rows, and another model where the link points to one."""
        folder = await asyncio.to_thread(self.link.resolve)
        if folder not in (self.version.folder, self._refused):
            try:
                version = await asyncio.to_thread(load, self.link, self.mmap)
            except (UserError, OSError, ValueError) as error:
                # The old model goes on. The folder is not tried again until the link changes.
                self._refused = folder
                log.error("%s not loaded, %s goes on: %s", folder, self.version.name, error)
                self.count("failed swap")
            else:
                await self._compute(self._exchange, version)
                self._refused = None
                log.info("serving %s", version.name)
                self.count("swap")
        await self._compute(self._take_updates)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.poll)
            try:
                await self.look()
            except Exception:
                log.exception("looking for a model failed")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
