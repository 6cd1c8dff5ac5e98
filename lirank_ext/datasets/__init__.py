"""What the demo trains on: MovieLens, a CSV or Parquet file, or the UCI Adult file shipped here.

Every feature becomes a bag of text ids (``movie=1193``), which the ranker hashes; numbers are
kept as standardised dense features too. Input that cannot be used raises :class:`DataError`,
one sentence that names the file and the line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.errors import DataError, MissingPackage
from .dataset import Batch, Dataset, progress, require
from .movielens import load_movielens
from .table import load_table

__all__ = [
    "ADULT",
    "Batch",
    "DataError",
    "Dataset",
    "MissingPackage",
    "load",
    "load_movielens",
    "load_table",
    "progress",
    "require",
]

ADULT = Path(__file__).parent / "adult.parquet"


def load(
    path: str | Path | None = None,
    label: str | None = None,
    *,
    categorical: Sequence[str] = (),
    time: str | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a MovieLens folder, a CSV or Parquet file, or what ships with the package.

    Args:
        path: folder or file. None takes MovieLens where the environment variable LIRANK_DATA
            points to it, else the UCI Adult file of the package.
        label: label column, ``NAME`` (0 or 1) or ``NAME=VALUE`` (1 where the column holds VALUE).
        categorical: number columns to read as ids.
        time: column to split by (latest tenth for the test); without it the split is random.
        rows: use no more rows than this: the latest, or a random sample where no time is known.
        seed: of the random split.
    """
    named = path or os.environ.get("LIRANK_DATA")
    options = {"categorical": categorical, "time": time, "rows": rows, "seed": seed}
    if not named:
        data = load_table(ADULT, label or "income=>50K", **options)
        data.name = "UCI Adult"
        return data
    source, named = "" if path else "LIRANK_DATA: ", Path(named)
    if not named.exists():
        raise DataError(f"{source}{named}: no such file or folder")
    if not named.is_dir():
        return load_table(named, label, **options)
    if label is not None or categorical or time is not None:
        raise DataError(f"{named}: label, categorical and time are for files, not for MovieLens")
    return load_movielens(named, rows=rows)
