"""``importance``: what each column is worth to a trained model."""

from __future__ import annotations

import argparse

from .._monitors import MONITORS
from .._table import print_table
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Shuffle one column at a time in rows that the model was not trained on, and show how much "
        "worse it ranks them, with the standard error over the repeats. Two columns that say the "
        "same cover for each other, and both look unimportant."
    )
    options.add_model(parser)
    options.add_group(parser)
    add = parser.add_argument
    add(
        "--metric",
        choices=tuple(MONITORS),
        default="auc",
        help="what is measured (default auc); gauc and ndcg need --group",
    )
    add("--repeats", type=int, default=5, metavar="N", help="shuffles of each column (default 5)")
    add("--rows", type=int, default=50_000, metavar="N", help="measure on so many (default 50,000)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the columns, the most important first."""
    options.check_packages()
    from .._progress import Progress
    from ..errors import UserError
    from ..training.importance import importance
    from ..training.metrics import GROUPED
    from ..training.session import open_model

    options.check_writable(args.json)
    options.check_positive("--repeats", args.repeats)
    options.check_positive("--rows", args.rows)
    device = options.use_device(args)
    used = open_model(args.model, args.data, device, skip=args.skip_bad_rows, group=args.group)
    schema = used.config.model.schema
    if args.metric in GROUPED and schema.group is None:
        raise UserError(f"--metric {args.metric}: name the column of the groups with --group")
    total = 1 + args.repeats * len(schema.columns)
    with Progress("shuffling", total, unit="measurements") as progress:
        whole, rows, columns = importance(
            used, args.metric, args.repeats, args.rows, progress.update
        )
    title = f"{args.metric} of {rows:,} rows: {whole:.4f}"
    cells = [
        [c.column, f"{c.loss:+.4f}", "-" if c.error != c.error else f"{c.error:.4f}"]
        for c in columns
    ]
    print_table(title, ("column", ">worse by", ">standard error"), cells)
    results.report_broken(used.broken)
    figures = {"metric": args.metric, "whole": whole, "rows": rows, "repeats": args.repeats}
    results.write_json(args.json, figures | {"columns": [c.as_json() for c in columns]})
    return 0
