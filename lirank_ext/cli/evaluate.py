"""``evaluate``: the metrics of a trained model."""

from __future__ import annotations

import argparse

from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    options.add_model(parser)
    options.add_group(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the metrics of every task."""
    options.check_packages()
    from .._progress import Progress
    from ..training.metrics import evaluate
    from ..training.session import open_model

    options.check_writable(args.json)
    device = options.use_device(args)
    used = open_model(args.model, args.data, device, skip=args.skip_bad_rows, group=args.group)
    with Progress("evaluating", unit="batches") as progress:
        metrics = evaluate(used.model, progress.over(used.loader), used.device)
    if not all(m.rows for m in metrics.values()):
        raise UserError(f"{args.data[0]}: no rows")
    figures = {name: m.as_json() for name, m in metrics.items()}
    results.print_metrics("", figures)
    results.report_broken(used.broken)
    results.write_json(args.json, figures)
    return 0
