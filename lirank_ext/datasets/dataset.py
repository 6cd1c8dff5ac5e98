"""Rows ready for a ranker, and what the readers of files share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.columns import ranges
from ..data.errors import DataError
from ..data.packages import need

MIN_PER_CLASS = 10


def require(name: str) -> ModuleType:
    """Import an optional package of the demo."""
    return need(name, "demo")


def progress(rows: Iterable[Any] | None, what: str, **options: Any) -> Any:
    """A progress bar on stderr around ``rows``."""
    return require("tqdm").tqdm(rows, desc=what, leave=False, mininterval=0.3, **options)


class Batch(NamedTuple):
    """Some rows: bags of ids with their offsets, row by row, dense features and labels."""

    ids: Tensor
    offsets: Tensor
    dense: Tensor
    labels: Tensor


@dataclass
class Dataset:
    """Rows ready for a ranker, in three parts.

    Attributes:
        name: what the rows are, for titles.
        task: what a label of 1 means.
        features: (F,) names of the bags of a row.
        vocabulary: the distinct text ids, "movie=1193".
        codes: int64 (total,) positions in ``vocabulary``, row by row and feature by feature.
        starts: int64 (N * F + 1,) where each bag starts in ``codes``.
        dense: float32 (N, K), standardised with the training rows.
        labels: float32 (N,), 0 or 1.
        train, valid, test: int64 row numbers of the three parts.
    """

    name: str
    task: str
    features: tuple[str, ...]
    vocabulary: list[str]
    codes: Tensor
    starts: Tensor
    dense: Tensor
    labels: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """The rows with these numbers; ids are positions in ``vocabulary``, offsets (len * F,)."""
        bags = len(self.features)
        begin = self.starts[rows * bags]
        lengths = self.starts[(rows + 1) * bags] - begin
        moved = lengths.cumsum(0) - lengths - begin  # from a place in codes to one in the batch
        places = torch.arange(int(lengths.sum())) - moved.repeat_interleave(lengths)
        offsets = self.starts[:-1].view(-1, bags)[rows] + moved[:, None]
        return Batch(self.codes[places], offsets.flatten(), self.dense[rows], self.labels[rows])


class Builder:
    """Collects features, then assembles them into a :class:`Dataset`."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.vocabulary: list[str] = []
        self.bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.dense: list[np.ndarray] = []

    def add_names(self, feature: str, values: Sequence[Any]) -> np.ndarray:
        """Give each value of a feature its text id; returns where each stands."""
        first = len(self.vocabulary)
        self.vocabulary += [f"{feature}={value}" for value in values]
        return np.arange(first, len(self.vocabulary))

    def add_ids(self, feature: str, codes: np.ndarray, values: Sequence[Any]) -> None:
        """A feature with one id per row: codes (N,) into ``values``."""
        self.add_bag(feature, self.add_names(feature, values)[codes], np.ones(self.num_rows, int))

    def add_bag(self, feature: str, places: np.ndarray, lengths: np.ndarray) -> None:
        """A feature with ``lengths[i]`` ids in row i: places (sum(lengths),) in the vocabulary."""
        self.bags[feature] = (places, lengths)

    def add_dense(self, values: np.ndarray, train: np.ndarray) -> None:
        """Standardise with the training rows; a missing value becomes the mean, 0."""
        seen = values[train]
        seen = seen[~np.isnan(seen)]
        mean, deviation = (seen.mean(), seen.std()) if len(seen) else (0.0, 0.0)
        if deviation > 0:
            # Beyond five deviations a long tail (capital gains, counts) only upsets the training.
            self.dense.append(np.nan_to_num((values - mean) / deviation).clip(-5, 5))

    def build(
        self, name: str, task: str, labels: np.ndarray, parts: Sequence[np.ndarray]
    ) -> Dataset:
        """The data set of all that was added; ``parts``: rows to train, validate and test on."""
        lengths = np.stack([length for _, length in self.bags.values()], 1)
        starts = np.zeros(lengths.size + 1, dtype=np.int64)
        np.cumsum(lengths.ravel(), out=starts[1:])
        codes = np.empty(starts[-1], dtype=np.int64)
        firsts = starts[:-1].reshape(lengths.shape)
        for i, (places, length) in enumerate(self.bags.values()):
            codes[ranges(firsts[:, i], length)] = places
        dense = np.stack(self.dense, 1) if self.dense else np.zeros((self.num_rows, 0))
        return Dataset(
            name,
            task,
            tuple(self.bags),
            self.vocabulary,
            torch.from_numpy(codes),
            torch.from_numpy(starts),
            torch.from_numpy(dense.astype(np.float32)),
            torch.from_numpy(labels.astype(np.float32)),
            *(torch.from_numpy(part.astype(np.int64)) for part in parts),
        )


def ordered_parts(order: np.ndarray) -> list[np.ndarray]:
    """Rows in order of time: the last tenth for the test, the tenth before to validate."""
    n = len(order)
    return np.split(order, [n * 8 // 10, n * 9 // 10])


def random_parts(labels: np.ndarray, rows: int | None, seed: int) -> list[np.ndarray]:
    """Eight tenths, one tenth and one tenth, drawn at random within each class."""
    generator = np.random.default_rng(seed)
    shares: list[list[np.ndarray]] = [[], [], []]
    picked = generator.permutation(len(labels))[:rows]
    for value in (0, 1):
        for share, part in zip(shares, ordered_parts(picked[labels[picked] == value]), strict=True):
            share.append(part)
    return [np.sort(np.concatenate(share)) for share in shares]


def check_parts(path: Any, labels: np.ndarray, parts: Sequence[np.ndarray]) -> None:
    """Refuse what no AUC can be measured on: too few rows, or all of one class."""
    rows = np.concatenate(parts)
    counts = np.bincount(labels[rows].astype(int), minlength=2)
    if counts.min() < MIN_PER_CLASS:
        raise DataError(
            f"{path}: {counts[1]} of {len(rows)} rows have label 1 and {counts[0]} label 0; "
            f"at least {MIN_PER_CLASS} of each are needed to train and test"
        )
    for part, name in zip(parts, ("train on", "validate on", "test on"), strict=True):
        if len(np.unique(labels[part])) < 2:
            raise DataError(f"{path}: the rows to {name} all have the same label")
