"""``predict``: a model's probabilities."""

from __future__ import annotations

import argparse
import csv
import sys

from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    options.add_model(parser)
    parser.add_argument("--output", metavar="FILE.csv", help="default: standard output")


def run(args: argparse.Namespace) -> int:
    """Write a row of probabilities for every row of the files."""
    options.check_packages()
    import torch

    from ..training.session import open_model

    device = options.use_device(args)
    used = open_model(args.model, args.data, device, labels=False, skip=args.skip_bad_rows)
    try:
        # Closed below; standard output is not ours to close.
        file = open(args.output, "w", newline="") if args.output else sys.stdout  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}") from error
    try:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(used.model.task_names)
        with torch.inference_mode():
            for batch in used.loader:
                moved = batch.to(torch.device(device))
                rows = used.model.predict(moved.features).float().cpu().tolist()
                writer.writerows([f"{p:.7g}" for p in row] for row in rows)
    finally:
        if args.output:
            file.close()
    results.report_broken(used.broken)
    return 0
