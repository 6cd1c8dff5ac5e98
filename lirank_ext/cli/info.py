"""``info``: what is installed."""

from __future__ import annotations

import argparse

from .._table import print_line, print_table
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = "Versions, what was built, what is in use, and what serves GPU tensors."
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is built and in use."""
    from ..library.build_info import build_info, gpu_ops

    options.check_writable(args.json)
    info, ops = build_info(), gpu_ops()
    print_table("", ("lirank_ext", ""), list(info.items()))
    print_line("")
    print_table("", ("op", "on a GPU"), list(ops.items()))
    results.write_json(args.json, info | {"gpu_ops": ops})
    return 0
