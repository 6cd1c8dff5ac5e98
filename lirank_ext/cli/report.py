"""``report``: pictures of a trained model, in one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._table import print_line
from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Score labeled rows that the model was not trained on, and write one HTML file that opens "
        "without a network: reliability, lift and gain, AUC by segment, what int8 and int4 rows "
        "would cost, what the cross layer multiplies, and the latency on this machine."
    )
    options.add_model(parser)
    options.add_group(parser)
    add = parser.add_argument
    add(
        "--segment",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column by whose values the AUC is shown, numbers in five ranges; repeat it for "
        "several (default: up to three columns of the model with 2 to 12 values)",
    )
    add("--rows", type=int, default=100_000, metavar="N", help="use so many rows (default 100,000)")
    add(
        "--output",
        default="report.html",
        metavar="FILE",
        help="the file to write (default: report.html)",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, draw and write the file."""
    options.check_packages()
    from ..data.packages import need
    from ..report import draw, measure
    from ..training.session import open_model

    need("matplotlib", "report")
    options.check_writable(args.output, args.json)
    options.check_positive("--rows", args.rows)
    if Path(args.output).is_dir():
        raise UserError(f"--output {args.output}: this is a folder, where a file was wanted")
    device = options.use_device(args)
    used = open_model(args.model, args.data, device, skip=args.skip_bad_rows, group=args.group)
    figures = measure(used, args.segment, args.rows)
    page = draw(figures, str(args.model), [str(path) for path in args.data])
    Path(args.output).write_text(page, encoding="utf-8")
    results.print_metrics("", figures.metrics)
    results.report_broken(used.broken)
    print_line(f"report: {args.output}")
    results.write_json(args.json, figures.as_json())
    return 0
