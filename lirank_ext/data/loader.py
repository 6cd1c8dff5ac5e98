"""Batches of a stream of files: shuffled within bounded blocks, made ahead by a thread."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from .errors import DataError
from .features import Batch, Converter, Rows, Whole
from .files import Chunk
from .source import Source

T = TypeVar("T")
SMALLEST = 2  # rows of a training batch: batch norm has no variance of fewer


class Position(NamedTuple):
    """The next batch to train on: its epoch, block of rows, and place within the block."""

    epoch: int = 0
    block: int = 0
    batch: int = 0


Share = tuple[int, int]  # see ``Converter.part``
Placed = tuple[Position, Batch]  # a batch and the position after it
WHOLE: Share = (0, 1)


class Split:
    """Which rows validate: a share drawn by row number, or the last ones.

    Args:
        share: of the rows, in [0, 1).
        last: the last rows instead of random ones; needs ``total``.
        seed: of the draw.
        total: number of rows.
    """

    def __init__(self, share: float, last: bool = False, seed: int = 0, total: int = 0) -> None:
        self.share, self.seed = share, seed
        self.first = total - round(share * total) if last else None

    def is_valid(self, numbers: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows to validate on."""
        if not self.share:
            return np.zeros(len(numbers), bool)
        if self.first is not None:
            return numbers >= self.first
        # splitmix64 of the row number: the same draw for any size of block.
        step = (0x9E3779B97F4A7C15 * (self.seed + 1)) % 2**64
        z = numbers.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + np.uint64(step)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) >> np.uint64(11) < np.uint64(self.share * 2**53)


class _Batches:
    def epoch(self, start: Position, share: Share = WHOLE) -> Iterator[Placed]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        """All batches once."""
        for _, batch in self.epoch(Position()):
            yield batch


class Loader(_Batches):
    """Batches of some of the rows of a source.

    Rows are read in blocks of ``block_rows``. To shuffle, a block is gathered from places all over
    the files, so that sorted files do no harm, and ordered by the seed, the epoch and its number.
    A block is cut into batches of equal size, and any position can be reached again. Files larger
    than a block stay on disk; a source of one block is converted once and kept.

    Args:
        source, converter: files, and how rows become tensors.
        batch_size: rows of a batch, on average.
        block_rows: rows shuffled together, and held in memory.
        split: which rows validate; None takes all rows.
        valid: take those rows, or else all others.
        shuffle: mix the rows; False keeps the order of the files.
        seed: of the order.
        prefetch: batches made ahead by a thread; 0 for none.
        negatives: share of the rows whose labels are all 0 to take, drawn by row number.
    """

    def __init__(
        self,
        source: Source,
        converter: Converter,
        batch_size: int,
        block_rows: int = 262_144,
        split: Split | None = None,
        valid: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        prefetch: int = 4,
        negatives: float = 1.0,
    ) -> None:
        self.source, self.converter = source, converter
        self.batch_size, self.block_rows = batch_size, max(block_rows, batch_size)
        self.split, self.valid = split, valid
        self.shuffle, self.seed, self.prefetch = shuffle, seed, prefetch
        # A draw of its own, or the rows that are left would depend on those that validate.
        self._negatives = Split(negatives, seed=seed + 1) if negatives < 1 else None
        self._only: Rows | None = None

    def epoch(self, start: Position, share: Share = WHOLE) -> Iterator[Placed]:
        """The rest of an epoch from a position on, each batch with the position after it.

        ``share`` is that of :meth:`Converter.part`.
        """
        made = self._epoch(start, share)
        return ahead(made, self.prefetch) if self.prefetch else made

    def sample(self, most: int) -> Rows:
        """About ``most`` of the rows, drawn by the seed from everywhere; all where they are fewer.

        Raises:
            DataError: there is no row.
        """
        rate = most / max(1.0, self.source.count() * self.share())
        rng, parts = np.random.default_rng(self.seed), []
        for _, rows in self._blocks(0):
            kept = rng.random(len(rows)) < rate
            parts.append(rows.take(np.flatnonzero(kept)))
        if not sum(map(len, parts)):
            raise DataError("no row to draw a sample from")
        return Rows.concatenate(parts)

    def _epoch(self, start: Position, share: Share) -> Iterator[Placed]:
        if share[1] > 1 and self._knows_rows():
            yield from self._own_rows(start, share)
            return
        for number, rows in self._blocks(start.block):
            parts = self._batches(len(rows), start.epoch, number)
            first = start.batch if number == start.block else 0
            for i, part in enumerate(parts[first:], first):
                after = Position(start.epoch, number, i + 1)
                yield after, self.converter.part(rows, part, share)

    def _knows_rows(self) -> bool:
        """Whether it is known which rows are in a block before they are converted.

        A source of one block is converted once in any case.
        """
        known = self._negatives is None and self.converter.keeps_all()
        return known and self.source.count() > self.block_rows

    def _own_rows(self, start: Position, share: Share) -> Iterator[Placed]:
        """As :meth:`_epoch`, but rows of other processes are read and not converted."""
        process, count = share
        for number, chunks in enumerate(self._read()(self.block_rows, start.block), start.block):
            places = [np.flatnonzero(self._is_mine(chunk.numbers)) for chunk in chunks]
            edges = np.cumsum([0, *map(len, places)])
            first = start.batch if number == start.block else 0
            parts = self._batches(int(edges[-1]), start.epoch, number)[first:]
            own = [part[process::count] for part in parts]
            wanted = np.sort(np.concatenate([*own, np.arange(0)]))
            cuts = np.searchsorted(wanted, edges)
            rows = Rows.concatenate(
                [
                    self.converter.rows(chunk.take(place[wanted[low:high] - edge]))
                    for chunk, place, low, high, edge in zip(
                        chunks, places, cuts, cuts[1:], edges, strict=False
                    )
                ]
            )
            for i, (part, mine) in enumerate(zip(parts, own, strict=True), first):
                batch = self.converter.batch(rows.take(np.searchsorted(wanted, mine)))
                batch.whole = Whole(len(part), len(part))
                yield Position(start.epoch, number, i + 1), batch

    def _batches(self, rows: int, epoch: int, block: int) -> list[np.ndarray]:
        """Row numbers of each batch of a block."""
        order = np.arange(rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch, block]).permutation(rows)
        if rows < (SMALLEST if self.shuffle else 1):
            return []
        return np.array_split(order, max(1, round(rows / self.batch_size)))

    def _blocks(self, start: int) -> Iterator[tuple[int, Rows]]:
        if self._only is not None:
            if start == 0:
                yield 0, self._only
            return
        number = start - 1
        for number, chunks in enumerate(self._read()(self.block_rows, start), start):
            rows = Rows.concatenate([self._select_split(self.converter.rows(c)) for c in chunks])
            if number == 0:
                first = rows
            yield number, rows
        if start == 0 and number == 0:
            self._only = first

    def _read(self) -> Callable[[int, int], Iterator[list[Chunk]]]:
        return self.source.mixed if self.shuffle else self.source.blocks

    def _is_mine(self, numbers: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows of this side of the split."""
        if self.split is None:
            return np.ones(len(numbers), bool)
        return self.split.is_valid(numbers) == self.valid

    def _select_split(self, rows: Rows) -> Rows:
        if self.split is not None:
            rows = rows.take(np.flatnonzero(self._is_mine(rows.numbers)))
        if self._negatives is not None:
            kept = rows.labels.any(1) | self._negatives.is_valid(rows.numbers)
            rows = rows.take(np.flatnonzero(kept))
        return rows

    def share(self) -> float:
        """The share of the rows that are taken, as in the first block."""
        if self.split is None and self._negatives is None:
            return 1.0
        if self._negatives is None:
            return self.split.share if self.valid else 1 - self.split.share
        first = next(self._read()(self.block_rows, 0), [])
        taken = sum(len(self._select_split(self.converter.rows(chunk))) for chunk in first)
        return taken / max(1, sum(chunk.table.num_rows for chunk in first))


class Memory(_Batches):
    """Batches of rows that are in memory, as a :class:`Loader` gives those of files.

    Args:
        rows: all rows.
        converter: makes them tensors.
        batch_size: rows of a batch, on average.
        seed: of the order; None keeps it.
    """

    def __init__(
        self, rows: Rows, converter: Converter, batch_size: int, seed: int | None = None
    ) -> None:
        self.rows, self.converter = rows, converter
        self.batch_size, self.seed = batch_size, seed

    def epoch(self, start: Position, share: Share = WHOLE) -> Iterator[Placed]:
        """As :meth:`Loader.epoch`."""
        order = np.arange(len(self.rows))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, start.epoch]).permutation(len(order))
        parts = np.array_split(order, max(1, round(len(order) / self.batch_size)))
        for i, part in enumerate(parts[start.batch :], start.batch):
            yield Position(start.epoch, 0, i + 1), self.converter.part(self.rows, part, share)


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The items, up to ``count`` of them made ahead by a thread; its errors are raised here."""
    made: queue.Queue = queue.Queue(count)
    end = object()

    def put(item: object) -> bool:
        while not thread.stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:
            put(error)

    thread = _Ahead(work)
    thread.start()
    try:
        while (item := made.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        thread.end()


class _Ahead(threading.Thread):
    """A thread that makes items ahead, and ends before Python does.

    An iterator that somebody still holds at exit leaves its thread running. Python stops such a
    thread at its next wish for the interpreter. Where that comes from within PyTorch, C++ ends the
    whole process ("terminate called without an active exception").
    """

    _running: weakref.WeakSet[_Ahead] = weakref.WeakSet()

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(target=work, name="lirank-loader", daemon=True)
        self.stop = threading.Event()
        self._running.add(self)

    def end(self) -> None:
        self.stop.set()
        self.join()

    @classmethod
    def end_all(cls) -> None:
        for thread in list(cls._running):
            if thread.is_alive():
                thread.end()


atexit.register(_Ahead.end_all)
