"""``predict``: a model's probabilities, a line for every input row."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from .._progress import Progress
from ..errors import UserError
from . import options, results

if TYPE_CHECKING:
    import pyarrow as pa

    from ..training.predict import Predictor, Scores

PARQUET = (".parquet", ".pq")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Write a model's probabilities: a line for every input row, in the order of the files. The "
        "last column tells the rows apart. With --skip-bad-rows a row that cannot be read keeps "
        "its line, without probabilities."
    )
    options.add_model(parser)
    add = parser.add_argument
    add(
        "--key",
        metavar="COLUMN",
        help="column that tells the rows apart (default: their number, from 1 over all files)",
    )
    add(
        "--group-by",
        metavar="COLUMN",
        help="score the rows that follow each other with the same value in it as the candidates of "
        "one request: what the request alone decides is computed once",
    )
    add(
        "--request",
        metavar="COLUMN",
        action="append",
        default=[],
        help="with --group-by: a column that is the same for all rows of a request; once for each "
        "(default: those of schema.request in the model's configuration)",
    )
    add(
        "--output",
        metavar="FILE",
        help="CSV, or Parquet where it ends in .parquet (default: CSV on standard output)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the probabilities as they are made."""
    options.check_packages()
    from ..training.predict import Predictor
    from ..training.session import open_model

    options.check_writable(args.output)
    device = options.use_device(args)
    used = open_model(args.model, args.data, device, labels=False, skip=args.skip_bad_rows)
    predictor = Predictor(used, args.key, args.group_by, args.request)
    # A bar on the terminal that shows the probabilities would be drawn between them.
    shown = bool(args.output) or not sys.stdout.isatty()
    with Progress("predicting", unit="rows", shown=shown) as progress:
        if args.output is None:
            _write_csv(sys.stdout, predictor, progress)
        else:
            _write_file(Path(args.output), predictor, progress)
    results.report_broken(used.broken)
    return 0


def _write_file(path: Path, predictor: Predictor, progress: Progress) -> None:
    """Write CSV or Parquet; a file is there as a whole or not at all."""
    try:
        with _replacing(path) as new:
            if path.suffix.lower() in PARQUET:
                _write_parquet(new, predictor, progress)
            else:
                with open(new, "w", newline="", encoding="utf-8") as file:
                    _write_csv(file, predictor, progress)
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror or error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The name to write to; it becomes ``path`` at the end, unless something went wrong.

    What is there and is no plain file, such as a named pipe, is written to as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _write_csv(file: TextIO, predictor: Predictor, progress: Progress) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(predictor.columns)
    for scores in predictor:
        writer.writerows(_lines(scores))
        progress.update(len(scores.keys))


def _lines(scores: Scores) -> Iterable[list[str]]:
    keys = ("" if key is None else str(key) for key in scores.keys.to_pylist())
    for row, key in zip(scores.probabilities.tolist(), keys, strict=True):
        yield [*("" if p != p else f"{p:.7g}" for p in row), key]


def _write_parquet(path: Path, predictor: Predictor, progress: Progress) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for scores in predictor:
        columns = [
            pa.array(column, pa.float32(), mask=np.isnan(column))
            for column in scores.probabilities.T
        ]
        table = pa.table([*columns, scores.keys], names=predictor.columns)
        if writer is None:
            writer = parquet.ParquetWriter(path, _schema(table))
        writer.write_table(table.cast(writer.schema))
        progress.update(len(scores.keys))
    if writer is None:
        raise UserError("no rows")
    writer.close()


def _schema(table: pa.Table) -> pa.Schema:
    """Names and types; keys of which the first file has none are text."""
    import pyarrow as pa

    key = table.schema[-1]
    if pa.types.is_null(key.type):
        return table.schema.set(len(table.schema) - 1, key.with_type(pa.string()))
    return table.schema
