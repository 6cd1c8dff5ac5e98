"""A model's probabilities for every row of some files, in their order and in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.errors import DataError
from ..data.features import Rows
from ..data.files import Chunk
from ..data.loader import ahead
from ..data.packages import need
from .requests import Requests, with_request
from .session import ModelOnFiles

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"


@dataclass
class Scores:
    """Probabilities of consecutive input rows.

    Attributes:
        probabilities: (N, T); NaN for a row that could not be read.
        keys: what tells the rows from others, one each.
    """

    probabilities: np.ndarray
    keys: pa.Array


class Predictor:
    """Scores every row of the files of a model, those that cannot be read included.

    Args:
        used: the model and its files, opened without labels.
        key: a column whose values name the rows; None numbers them from 1 over all files.
        group_by: a column; rows that follow each other and have the same value in it are scored
            as candidates of one request, by ``LiRank.score``.
        request: columns of the files that are the same for all rows of a request; by default those
            of ``Schema.request``.

    Attributes:
        columns: names of the probabilities, one for each task, and of the keys, which come last.

    Raises:
        DataError: a file has no column ``key`` or ``group_by``, a task has the name of the former,
            or no column of the request is known.
    """

    def __init__(
        self,
        used: ModelOnFiles,
        key: str | None = None,
        group_by: str | None = None,
        request: Sequence[str] = (),
    ) -> None:
        self.used, self.key = used, key
        source, tasks = used.loader.source, used.model.task_names
        for column in (key, group_by):
            if column is None:
                continue
            for file in source.files:
                file.check(column)
            source.columns = list(dict.fromkeys([*source.columns, column]))
        if request and group_by is None:
            raise DataError("--request: only --group-by makes use of it")
        if request:
            config, converter = used.model.config, used.loader.converter
            config.schema = converter.schema = with_request(config.schema, request)
        self.requests = None
        if group_by is not None:
            self.requests = Requests(used.model, used.loader.converter, group_by)
        self.columns = [*tasks, ROW if key is None else key]
        if self.columns[-1] in tasks:
            raise DataError(f"--key: the model predicts a column '{self.columns[-1]}' itself")
        self._given = 0  # scores given so far

    def __iter__(self) -> Iterator[Scores]:
        """The scores, a chunk of a file at a time."""
        loader, record = self.used.loader, 0
        files = deque(loader.source.files)
        chunks = self._chunks()
        for chunk, rows in ahead(chunks, loader.prefetch) if loader.prefetch else chunks:
            while files[0] is not chunk.file:
                yield from self._rest(files.popleft().path, record)
                record = 0
            lost = self.used.broken.lost(chunk.file.path, record)
            places = _places(chunk.table.num_rows, record, lost)
            yield self._scores(chunk, rows, places - record)
            record = int(places[-1]) + 1 if len(places) else record
        for file in files:
            yield from self._rest(file.path, record)
            record = 0

    def _chunks(self) -> Iterator[tuple[Chunk, Rows]]:
        for chunk in self.used.loader.source.chunks():
            yield chunk, self.used.loader.converter.rows(chunk)

    def _scores(self, chunk: Chunk, rows: Rows, places: np.ndarray) -> Scores:
        """Scores of the records up to a chunk's last row.

        Args:
            chunk: rows as they were read.
            rows: those of them whose values fit.
            places: of the chunk's rows among these records, rising; the others are no rows.
        """
        total = int(places[-1]) + 1 if len(places) else 0
        scores = np.full((total, len(self.used.model.task_names)), np.nan, np.float32)
        scores[places[rows.numbers - chunk.first]] = self._probabilities(rows, chunk)
        return Scores(scores, self._keys(total, chunk, places))

    @torch.inference_mode()
    def _probabilities(self, rows: Rows, chunk: Chunk) -> np.ndarray:
        loader, device = self.used.loader, torch.device(self.used.device)
        if self.requests is None:
            found = self._row_by_row(rows, device)
        else:
            values = self.requests.values(chunk, rows)
            found = self.requests.score(rows, values, loader.batch_size, device)
        scores = [np.zeros((0, len(self.used.model.task_names)), np.float32)]
        scores += [part.float().cpu().numpy() for part in found]
        if not all(np.isfinite(part).all() for part in scores):
            raise DataError("the model predicts numbers that are not finite")
        return np.concatenate(scores)

    def _row_by_row(self, rows: Rows, device: torch.device) -> Iterator[torch.Tensor]:
        loader = self.used.loader
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // loader.batch_size) or 1)
        for part in parts:
            if len(part):
                batch = loader.converter.batch(rows.take(part)).to(device)
                yield self.used.model.predict(batch.features)

    def _keys(self, total: int, chunk: Chunk | None, places: np.ndarray) -> pa.Array:
        """A key for each of ``total`` records; null where a record is no row."""
        pa = need("pyarrow")
        first, self._given = self._given, self._given + total
        if self.key is None:
            return pa.array(np.arange(first + 1, first + total + 1))
        if chunk is None:
            return pa.nulls(total)
        values = chunk.table[self.key]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if total == len(values):
            return values
        taken = np.full(total, -1)
        taken[places] = np.arange(len(values))
        return values.take(pa.array(taken, mask=taken < 0))

    def _rest(self, path: Path, record: int) -> Iterator[Scores]:
        """Scores for the records of a file from ``record`` on, none of which is a row."""
        total = len(self.used.broken.lost(path, record))
        if total:
            empty = np.full((total, len(self.used.model.task_names)), np.nan, np.float32)
            yield Scores(empty, self._keys(total, None, np.arange(0)))


def _places(rows: int, record: int, lost: list[int]) -> np.ndarray:
    """Places in their file of the next rows, when the records before ``record`` are done with.

    Args:
        rows: how many.
        record: the first place.
        lost: places from there on that are no rows.
    """
    free = np.ones(rows + len(lost), bool)
    gaps = np.array(lost, np.int64) - record
    free[gaps[gaps < len(free)]] = False
    return record + np.flatnonzero(free)[:rows]
