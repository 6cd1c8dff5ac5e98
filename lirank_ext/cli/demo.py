"""``demo``: a ranker on real data, swapped and quantized."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from .. import demo

    demo.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, swap, quantize and compare."""
    from .. import demo

    return demo.run(args)
