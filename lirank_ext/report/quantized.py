"""What int8 and int4 rows would change in a model, on its own tables and rows."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..conversion.quantize import quantize
from ..data.loader import Memory
from ..models import LiRank
from ..ops.quantized_embedding_rows import dequantize_rows, quantize_rows
from ..training.metrics import Scored, measure, score

BITS = (8, 4)
ROWS = 20_000  # of a table whose errors are shown
EDGES = np.logspace(-5, 0, 61)


@dataclass
class Effect:
    """A model with rows of so many bits beside the float one.

    Attributes:
        bits: of a value.
        bytes_before, bytes_after: of all tables.
        median, largest: relative error of a row, ``|row - dequantized| / |row|``.
        counts: rows by relative error, between the :data:`EDGES`.
        score_change: largest change of a probability.
        auc_change: of each task; None where its labels are all the same.
    """

    bits: int
    bytes_before: int
    bytes_after: int
    median: float
    largest: float
    counts: list[int]
    score_change: float
    auc_change: list[float | None]


@dataclass
class Quantized:
    """The effects of every number of bits, on up to :data:`ROWS` rows of each table."""

    effects: list[Effect]
    rows: int


def quantized(model: LiRank, batches: Memory, scored: Scored, device: str) -> Quantized | str:
    """The effects, or in a sentence why there are none to show."""
    tables = [weight.detach() for weight in model.table_parameters()]
    if not tables:
        if any(True for _ in model.tables.children()):
            return "The tables are quantized already; what was lost is known to the float model."
        return "The model has no embedding tables."
    rows = [_some(table) for table in tables]
    effects = [_effect(model, bits, rows, batches, scored, device) for bits in BITS]
    return Quantized(effects, sum(map(len, rows)))


def _some(table: torch.Tensor) -> torch.Tensor:
    if len(table) <= ROWS:
        return table
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:ROWS]
    return table[drawn.to(table.device)]


def _effect(
    model: LiRank,
    bits: int,
    tables: list[torch.Tensor],
    batches: Memory,
    scored: Scored,
    device: str,
) -> Effect:
    errors = torch.cat([_errors(table, bits) for table in tables]).numpy()
    small = copy.deepcopy(model)
    report = quantize(small, bits)
    logits = score(small, batches, device).logits
    before, after = (1 / (1 + np.exp(-z.astype(np.float64))) for z in (scored.logits, logits))
    gaps = [
        measure(b, y, scored.weights).auc - measure(a, y, scored.weights).auc
        for a, b, y in zip(scored.logits.T, logits.T, scored.labels.T, strict=True)
    ]
    counts = np.histogram(np.clip(errors, EDGES[0], EDGES[-1]), EDGES)[0]
    return Effect(
        bits,
        report.bytes_before,
        report.bytes_after,
        float(np.median(errors)),
        float(errors.max()),
        counts.tolist(),
        float(np.abs(after - before).max()),
        [None if np.isnan(gap) else float(gap) for gap in gaps],
    )


def _errors(table: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows,) relative errors; 0 for a row of zeros."""
    table = table.float()
    off = (table - dequantize_rows(*quantize_rows(table, bits))).norm(dim=1)
    relative: torch.Tensor = off / table.norm(dim=1).clamp_min(1e-30)
    return relative.cpu()
