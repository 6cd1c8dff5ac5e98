"""``calibrate``: a model's calibration on newer files."""

from __future__ import annotations

import argparse

from .._table import print_line
from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    options.add_model(parser)
    add = parser.add_argument
    add("--output", metavar="DIR", help="default: the model's own folder")
    add(
        "--l2",
        type=float,
        default=10.0,
        metavar="ROWS",
        help="pull of each bucket towards the identity, in rows (default 10)",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Fit the calibration, print the metrics before and after, and save the model."""
    options.check_packages()
    from ..training.calibrate import calibrate
    from ..training.metrics import evaluate
    from ..training.session import open_model, save_model

    options.check_writable(args.json)
    if not args.l2 >= 0:
        raise UserError(f"--l2: wanted 0 or more, got {args.l2}")
    used = open_model(args.model, args.data, options.use_device(args), skip=args.skip_bad_rows)
    model, loader, device = used.model, used.loader, used.device
    if model.calibration is None:
        raise UserError(f"{args.model}: the model has no calibration (calibration.enabled = false)")
    output = options.make_folder(args.model if args.output is None else args.output)
    before = evaluate(model, loader, device)
    if not all(m.rows for m in before.values()):
        raise UserError(f"{args.data[0]}: no rows")
    calibrate(model, loader, device, args.l2)
    after = evaluate(model, loader, device)
    figures = {f"{t}, before": before[t].as_json() for t in before}
    figures.update({f"{t}, after": after[t].as_json() for t in after})
    results.print_metrics("On the rows fitted to", figures)
    results.report_broken(used.broken)
    print_line(f"model: {save_model(output, model, used.config)}")
    results.write_json(args.json, figures)
    return 0
