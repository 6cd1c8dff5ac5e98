"""``inspect``: how every column of files would be read."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .._table import print_table
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help=options.FILES)
    add(
        "--label",
        action="append",
        metavar="LABEL",
        help="label column, as for train",
    )
    options.add_reading(parser)
    add("--skip-bad-rows", action="store_true", help="pass over broken rows")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table of the columns."""
    options.check_writable(args.json)
    from ..data.broken import BadRows
    from ..data.infer import HEADINGS, cells, infer
    from ..data.reading import Reading

    inferred = infer(
        args.data,
        args.label,
        Reading.from_values(vars(args)),
        broken=BadRows(args.skip_bad_rows),
    )
    print_table("", HEADINGS, [cells(column) for column in inferred.columns])
    results.write_json(args.json, [asdict(column) for column in inferred.columns])
    return 0
