"""Rows by the values of a column, and how well they are ranked among themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..data.errors import DataError
from ..data.features import Rows
from ..data.packages import need
from ..training.metrics import difference_error
from ..training.metrics import measure as metrics_of
from ..training.session import ModelOnFiles

if TYPE_CHECKING:
    import pyarrow as pa

FEWEST, MOST = 2, 12  # values of a column that is taken without being asked for
RANGES = 5  # of a column of numbers
MISSING, OTHERS = "(missing)", "(others)"


@dataclass(frozen=True)
class Segment:
    """The rows with one value of a column.

    Attributes:
        value: as it stands in the file, a range of numbers, "(missing)" or "(others)".
        rows: how many.
        auc: None where all labels are the same.
        error: standard error of the AUC (after DeLong, DeLong and Clarke-Pearson 1988); None
            where there is no AUC or the rows have weights.
        observed, predicted: share of labels of 1, and mean probability.
    """

    value: str
    rows: int
    auc: float | None
    error: float | None
    observed: float
    predicted: float


@dataclass
class Groups:
    """The rows of each value of a column.

    Attributes:
        names: of the values.
        codes: (n,) the number of each row's value.
        ranges: whether the values are numbers, of which each name stands for a range.
    """

    names: list[str]
    codes: np.ndarray
    ranges: bool = False


def read(used: ModelOnFiles, columns: Sequence[str], rows: int) -> tuple[Rows, dict[str, Groups]]:
    """About ``rows`` rows, drawn from everywhere, and how columns divide them.

    Args:
        used: a model and files that are opened with their labels.
        columns: of the files.
        rows: how many, about; all where the files have fewer.

    Raises:
        DataError: there is no row, or a column holds lists.
    """
    loader = used.loader
    source, missing = loader.source, set(used.config.model.schema.missing)
    source.columns = list(dict.fromkeys([*source.columns, *columns]))
    rate = rows / max(1, source.count())
    rng = np.random.default_rng(0)
    parts: list[Rows] = []
    texts: dict[str, list[pa.Array]] = {column: [] for column in columns}
    for chunk in source.chunks():
        found = loader.converter.rows(chunk)
        found = found.take(np.flatnonzero(rng.random(len(found)) < rate))
        parts.append(found)
        for column in columns:
            values = chunk.table[column].take(need("pyarrow").array(found.numbers - chunk.first))
            texts[column].append(_text(values, column))
    if not sum(map(len, parts)):
        raise DataError("no row to report on")
    groups = {column: _groups(some, missing) for column, some in texts.items()}
    return Rows.concatenate(parts), groups


def _text(values: pa.Array | pa.ChunkedArray, column: str) -> pa.Array:
    pa = need("pyarrow")
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    try:
        return values.cast(pa.string())
    except pa.ArrowException as error:
        text = f"--segment {column}: wanted a column of single values, got {values.type}"
        raise DataError(text) from error


def _groups(texts: list[pa.Array], missing: set[str]) -> Groups:
    """The most frequent values, or ranges where there are many and all are numbers."""
    pa = need("pyarrow")
    column = pa.chunked_array(texts).combine_chunks().dictionary_encode()
    known = [str(value) for value in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(len(known)).to_numpy(zero_copy_only=False).astype(np.int64)
    lost = np.array([value.strip() in missing or not value.strip() for value in known] + [True])
    present = [i for i in range(len(known)) if not lost[i]]
    if len(present) > MOST:
        numbers = np.array([_number(value) for value in known] + [np.nan])
        if np.isfinite(numbers[present]).all():
            return _ranges(np.where(lost[codes], np.nan, numbers[codes]))
    return _frequent(known, codes, lost)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _ranges(numbers: np.ndarray) -> Groups:
    """Ranges with about as many rows each."""
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, RANGES + 1)))
    codes = np.searchsorted(edges[1:-1], numbers, side="right")
    names = [f"{low:,.6g} to {high:,.6g}" for low, high in pairwise(edges)]
    names = names or [f"{edges[0]:,.6g}"]
    codes = np.where(np.isnan(numbers), len(names), codes)
    return _without_empty([*names, MISSING], codes, ranges=True)


def _frequent(known: list[str], codes: np.ndarray, lost: np.ndarray) -> Groups:
    """The :data:`MOST` most frequent values, all others together, and what is missing."""
    counts = np.bincount(codes, minlength=len(known) + 1)
    counts[lost] = 0
    kept = [int(i) for i in np.argsort(-counts, kind="stable")[:MOST] if counts[i]]
    places = np.full(len(known) + 1, len(kept))
    places[kept] = range(len(kept))
    places[lost] = len(kept) + 1
    return _without_empty([*(known[i] for i in kept), OTHERS, MISSING], places[codes])


def _without_empty(names: list[str], codes: np.ndarray, ranges: bool = False) -> Groups:
    there, codes = np.unique(codes, return_inverse=True)
    return Groups([names[i] for i in there], codes, ranges)


def chosen(groups: dict[str, Groups], most: int = 3) -> dict[str, Groups]:
    """The first columns with few values, then those of ranges, for who asks for none."""
    few = [name for name, g in groups.items() if FEWEST <= len(g.names) <= MOST]
    few.sort(key=lambda name: groups[name].ranges)
    return {name: groups[name] for name in few[:most]}


def segments(
    groups: Groups, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> list[Segment]:
    """The AUC among the rows of each value.

    Args:
        groups: which row has which value.
        logits, labels: (n,) of one task.
        weights: (n,) by which rows count; None counts each once.
    """
    found = []
    for code, name in enumerate(groups.names):
        mine = groups.codes == code
        z, y = logits[mine], labels[mine]
        w = None if weights is None else weights[mine]
        metrics = metrics_of(z, y, w)
        auc = None if np.isnan(metrics.auc) else metrics.auc
        error = None
        if auc is not None and w is None and 1 < y.sum() < len(y) - 1:
            # All rows of a constant model are ties: it has an AUC of one half without an error.
            error = difference_error(z, np.zeros_like(z), y, "auc")
        predicted = 1 / (1 + np.exp(-z.astype(np.float64)))
        shares = (float(np.average(v, weights=w)) for v in (y, predicted))
        found.append(Segment(name, len(y), auc, error, *shares))
    return found
