"""``python -m lirank_ext demo``: train a ranker on real data, swap, quantize, compare.

The ranker of plain PyTorch modules is trained and evaluated, its modules are swapped for the
fast ones, its tables quantized, and each variant is evaluated and timed on the same rows.
"""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import build_info, quantize, swap
from .._table import print_line
from ..data.packages import need
from ..library.processor import Watch
from .measure import (
    CANDIDATES,
    REPEATS,
    REQUESTS,
    Reading,
    read,
    time_candidates,
    time_requests,
)
from .prepare import Prepared, prepare
from .ranker import configuration, train
from .show import draw, headline, show

__all__ = ["Options", "run"]

QUICK_ROWS = 150_000
MOST_ROWS = 2_000_000


@dataclass(frozen=True)
class Options:
    """What the demo is asked for.

    Attributes:
        data, label, categorical, time: see :func:`prepare`.
        rows: use no more than so many; None for a number that ``quick`` decides.
        quick: fewer rows and epochs.
        bits: of a quantized value.
        seed: of the split and the weights.
    """

    data: str | None = None
    label: str | None = None
    categorical: Sequence[str] = ()
    time: str | None = None
    rows: int | None = None
    quick: bool = False
    bits: int = 8
    seed: int = 0


def run(options: Options, output: Path) -> dict[str, Any]:
    """Train, swap, quantize and compare; print a table and write ``demo.png`` and ``demo.json``.

    Returns:
        What is written to ``demo.json``.

    Raises:
        UserError: the data cannot be used, or a package is missing.
    """
    for name in ("pyarrow", "sklearn", "matplotlib"):
        need(name, "demo")
    data = prepare(
        options.data,
        options.label,
        categorical=options.categorical,
        time=options.time,
        rows=options.rows or (QUICK_ROWS if options.quick else MOST_ROWS),
        seed=options.seed,
        folder=output,
    )
    readings, notes = _compare(data, options)
    show(data, readings)
    draw(output / "demo.png", data, readings)
    content = _figures(data, readings, notes, options)
    (output / "demo.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print_line(headline(readings))
    if "disturbance" in notes:
        print_line(notes["disturbance"], "bad")
    print_line(f"picture and figures: {output / 'demo.png'}, {output / 'demo.json'}")
    return content


def _compare(data: Prepared, options: Options) -> tuple[list[Reading], dict[str, str]]:
    """Train, swap and quantize, reading each variant."""
    epochs = _epochs(len(data.train), options.quick)
    model = train(configuration(data), data, epochs, options.seed)
    swapped = copy.deepcopy(model)
    notes = {"swap": str(swap(swapped))}
    quantized = copy.deepcopy(swapped)
    notes["quantize"] = str(quantize(quantized, bits=options.bits))
    models = {"plain PyTorch": model, "swapped": swapped, f"swapped + int{options.bits}": quantized}
    readings = [read(name, variant, data) for name, variant in models.items()]
    watch = Watch()
    latency = time_requests(models, data, REQUESTS, options.seed)
    candidates = time_candidates(models, data, CANDIDATES, REPEATS, options.seed)
    if watch.read().disturbs(torch.get_num_threads()):
        notes["disturbance"] = (
            "Disturbed: other processes used the cores while requests were timed, so the times and "
            "what is faster may be far off: run again on an idle machine, or with fewer --threads."
        )
    for reading in readings:
        reading.latency = latency[reading.name]
        reading.candidates = candidates[reading.name]
    return readings, notes


def _epochs(rows: int, quick: bool) -> int:
    """Small data are seen more often; early stopping cuts what is too much."""
    return min(6, max(1, 400_000 // rows)) if quick else min(6, max(2, 1_200_000 // rows))


def _figures(
    data: Prepared,
    readings: list[Reading],
    notes: dict[str, str],
    options: Options,
) -> dict[str, Any]:
    """All figures, with the machine they were taken on."""
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {
        "data": {"name": data.name, "task": data.task, "features": data.schema.columns},
        "rows": {part: len(getattr(data, part)) for part in ("train", "valid", "test")},
        "options": {"quick": options.quick, "seed": options.seed, "bits": options.bits},
        "machine": {**machine, "threads": torch.get_num_threads()},
        "build": build_info(),
        "readings": [reading.as_json() for reading in readings],
        "reports": notes,
    }
