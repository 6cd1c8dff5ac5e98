"""``python -m lirank_ext demo``: train a ranker on real data, swap, quantize, compare.

The ranker of plain PyTorch modules is trained and evaluated, its modules are swapped for the
fast ones, its tables quantized, and each variant is evaluated and timed on the same rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
from pathlib import Path

import torch

from .. import build_info, quantize, swap
from ..data.errors import DataError, MissingPackage
from ..data.packages import need
from .measure import REQUESTS, Reading, read, time_requests
from .prepare import Prepared, prepare
from .ranker import configuration, train
from .show import draw, headline, print_table

__all__ = ["add_arguments", "run"]

QUICK_ROWS = 150_000
MOST_ROWS = 2_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo to a parser."""
    parser.description = (
        "Train a ranker, swap its modules for the fast ones, quantize its tables, and compare "
        "quality, bytes and latency. Without --data: MovieLens where the environment variable "
        "LIRANK_DATA points to it, else UCI Adult, which ships with the package."
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="a MovieLens-1M folder, or a CSV or Parquet file")
    add("--label", metavar="NAME[=VALUE]", help="label column of a file: 0 or 1, or 1 for VALUE")
    add("--categorical", metavar="NAMES", default="", help="number columns to read as ids: a,b")
    add("--time", metavar="NAME", help="column of a file to split by; without it: at random")
    add("--rows", metavar="N", type=_positive, help="use no more rows than this")
    add("--quick", action="store_true", help="fewer rows and epochs: under two minutes")
    add("--bits", type=int, choices=(8, 4), default=8, help="of a quantized value")
    add("--output", metavar="DIR", default="demo_output", help="for the picture and the JSON")
    add("--seed", type=int, default=0)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0, or 2 after one sentence on stderr where the input cannot be used."""
    try:
        for name in ("pyarrow", "sklearn", "tqdm", "rich", "matplotlib"):
            need(name, "demo")
        output = _folder(args.output)
        data = _prepare(args, output)
        readings, notes = _compare(data, args)
        print_table(data, readings)
        draw(output / "demo.png", data, readings)
        _write(output / "demo.json", data, readings, notes, args)
    except (DataError, MissingPackage) as error:
        print(f"lirank_ext demo: {error}", file=sys.stderr)
        return 2
    print(headline(readings))
    print(f"picture and figures: {output / 'demo.png'}, {output / 'demo.json'}")
    return 0


def _folder(name: str) -> Path:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output {name}: {error.strerror}") from error
    return Path(name)


def _prepare(args: argparse.Namespace, output: Path) -> Prepared:
    return prepare(
        args.data,
        args.label,
        categorical=[name for name in args.categorical.split(",") if name],
        time=args.time,
        rows=args.rows or (QUICK_ROWS if args.quick else MOST_ROWS),
        seed=args.seed,
        folder=output,
    )


def _compare(data: Prepared, args: argparse.Namespace) -> tuple[list[Reading], dict[str, str]]:
    """Train, swap and quantize, reading each variant."""
    epochs = _epochs(len(data.train), args.quick)
    model = train(configuration(data), data, epochs, args.seed)
    swapped = copy.deepcopy(model)
    notes = {"swap": str(swap(swapped))}
    quantized = copy.deepcopy(swapped)
    notes["quantize"] = str(quantize(quantized, bits=args.bits))
    models = {"plain PyTorch": model, "swapped": swapped, f"swapped + int{args.bits}": quantized}
    readings = [read(name, variant, data) for name, variant in models.items()]
    latency = time_requests(models, data, REQUESTS, args.seed)
    for reading in readings:
        reading.latency = latency[reading.name]
    return readings, notes


def _epochs(rows: int, quick: bool) -> int:
    """Small data are seen more often; early stopping cuts what is too much."""
    return min(3, max(1, 400_000 // rows)) if quick else min(6, max(2, 1_200_000 // rows))


def _write(
    path: Path,
    data: Prepared,
    readings: list[Reading],
    notes: dict[str, str],
    args: argparse.Namespace,
) -> None:
    """Write all figures, with the machine they were taken on."""
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {
        "data": {"name": data.name, "task": data.task, "features": data.schema.columns},
        "rows": {part: len(getattr(data, part)) for part in ("train", "valid", "test")},
        "options": {"quick": args.quick, "seed": args.seed, "bits": args.bits},
        "machine": {**machine, "threads": torch.get_num_threads()},
        "build": build_info(),
        "readings": [reading.as_json() for reading in readings],
        "reports": notes,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
