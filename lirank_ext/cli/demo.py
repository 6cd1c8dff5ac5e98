"""``demo``: a ranker on real data, swapped and quantized."""

from __future__ import annotations

import argparse

from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Train a ranker, swap its modules for the fast ones, quantize its tables, and compare "
        "quality, bytes and latency. Without --data: MovieLens where the environment variable "
        "LIRANK_DATA points to it, else UCI Adult, which ships with the package."
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="a MovieLens-1M folder, or a CSV or Parquet file")
    add("--label", metavar="LABEL", help="label column of a file, as for train")
    add(
        "--categorical",
        type=options.names,
        default=(),
        metavar="A,B",
        help="number columns to read as ids",
    )
    add("--time", metavar="NAME", help="column of a file to split by (default: at random)")
    add("--rows", metavar="N", type=int, help="use no more rows than this")
    add("--quick", action="store_true", help="fewer rows and epochs: under two minutes")
    add("--bits", type=int, choices=(8, 4), default=8, help="of a quantized value (default 8)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    add(
        "--output",
        metavar="DIR",
        default="demo_output",
        help="for the picture and the figures (default: demo_output)",
    )
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train, swap, quantize and compare."""
    from ..demo import Options
    from ..demo import run as compare

    options.check_writable(args.json)
    options.check_positive("--rows", args.rows)
    options.use_threads(args.threads)
    asked = Options(
        args.data,
        args.label,
        args.categorical,
        args.time,
        args.rows,
        args.quick,
        args.bits,
        args.seed,
    )
    results.write_json(args.json, compare(asked, options.make_folder(args.output)))
    return 0
