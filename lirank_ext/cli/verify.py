"""``verify``: every backend against the reference."""

from __future__ import annotations

import argparse

from .._table import print_line, print_table
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Compare every op on every backend usable here with its float64 reference, forward and "
        "backward, on random and adversarial inputs. Exit code 1 on any failure."
    )
    parser.add_argument("--op", metavar="NAME", help="one op (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one device (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the inputs (default 0)"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print a row for every op and backend; 1 where one failed."""
    from .. import verify

    options.check_device(args.device)
    options.check_name(args.op, verify.public_ops())
    options.check_writable(args.json)
    rows = verify.verify(args.op, args.device, args.seed)
    columns = ("op", "backend", ">cases", ">worst error", ">allowed", "verdict")
    styles = ["dim" if r.absent else "good" if r.passed else "bad" for r in rows]
    print_table("", columns, [r.cells() for r in rows], styles)
    print_line(verify.summary(rows), "good" if verify.passed(rows) else "bad")
    results.write_json(args.json, verify.as_json(rows, args.seed))
    return 0 if verify.passed(rows) else 1
