"""``bench``: every op beside its peers."""

from __future__ import annotations

import argparse
import importlib.util

from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Time every op beside its reference, eager PyTorch, torch.compile and peers. What "
        "disagrees with the reference is not timed and makes the exit code 1."
    )
    add = parser.add_argument
    add("--op", metavar="NAME", help="one op, or a family such as 'cross' (default: all)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--peers", action="store_true", help="also time the other libraries installed")
    add("--quick", action="store_true", help="fewer shapes and repeats")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: as many as have a core that is free)",
    )
    add("--seconds", type=float, metavar="S", help="for the repeats of one shape (default: 2)")
    add("--plot", metavar="FILE", help="also draw the speed-ups, as PNG or SVG")
    add(
        "--fastest",
        action="store_true",
        help="with --plot: one line an op, beside the fastest other provider of each shape",
    )
    add(
        "--from",
        dest="earlier",
        metavar="FILE.json",
        help="show and draw the figures that --json wrote earlier; nothing is timed",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Time, print a table for every op; 1 where an op disagrees with its reference."""
    from ..benchmarks import harness
    from ..benchmarks.report import Report

    options.check_device(args.device)
    options.check_name(args.op, harness.names())
    options.check_writable(args.json, args.plot)
    options.check_positive("--threads", args.threads)
    if args.seconds is not None and not 0 < args.seconds < 3600:
        raise UserError(f"--seconds: wanted a number above 0 and below 3600, got {args.seconds}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install matplotlib")
    if args.fastest and not args.plot:
        raise UserError("--fastest is for the picture: give --plot FILE too")
    if args.earlier is not None:
        report = Report.load(args.earlier)
    else:
        report = harness.run(
            args.op,
            args.device,
            peers=args.peers,
            quick=args.quick,
            threads=args.threads,
            seconds=args.seconds,
        )
    report.show()
    if args.json:
        results.write_json(args.json, report.as_json())
    if args.plot:
        report.plot(args.plot, args.fastest)
    return 1 if report.failed else 0
