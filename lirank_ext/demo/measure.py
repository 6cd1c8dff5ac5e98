"""What the demo measures of a ranker: quality, bytes and latency."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .._progress import Progress
from ..models import LiRank, Schema
from ..training.metrics import measure, score
from .prepare import Prepared

REQUESTS = {1: 500, 64: 300, 1024: 150}  # batch size to number of timed requests
CANDIDATES, REPEATS = 500, 30  # of one request, and how many requests are timed


@dataclass
class Reading:
    """One variant of the ranker.

    Attributes:
        latency: batch size to (p50, p99) in milliseconds.
        candidates: p50 in milliseconds of the candidates of one request, as joined rows and by
            ``LiRank.score``.
    """

    name: str
    auc: float
    log_loss: float
    observed_over_expected: float
    embedding_bytes: int
    model_bytes: int
    probabilities: np.ndarray
    latency: dict[int, tuple[float, float]] = field(default_factory=dict)
    candidates: tuple[float, float] = (0.0, 0.0)

    def as_json(self) -> dict[str, Any]:
        """All but the probabilities."""
        return {key: value for key, value in vars(self).items() if key != "probabilities"}


def read(name: str, model: LiRank, data: Prepared) -> Reading:
    """Quality on the rows to test on, and bytes."""
    scored = score(model, data.memory(data.test))
    logits, labels = scored.logits[:, 0], scored.labels[:, 0]
    metrics = measure(logits, labels)
    return Reading(
        name,
        metrics.auc,
        metrics.log_loss,
        metrics.observed_to_expected,
        num_bytes(model.tables),
        num_bytes(model),
        1 / (1 + np.exp(-logits.astype(np.float64))),
    )


def num_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def time_requests(
    models: dict[str, LiRank], data: Prepared, requests: dict[int, int], seed: int = 0
) -> dict[str, dict[int, tuple[float, float]]]:
    """p50 and p99 in milliseconds of scoring a batch of test rows, hashes to probabilities.

    The variants take turns on every request, so that a disturbance of the machine meets all.
    """
    generator = np.random.default_rng(seed)
    progress = Progress("timing", sum(requests.values()), "requests")
    result: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in models}
    for size, count in requests.items():
        taken = {name: np.empty(count) for name in models}
        for request in range(-max(5, count // 10), count):  # the negative ones warm up
            features = data.batch(generator.choice(data.test, size)).features
            # Who runs after the slowest finds the caches full of its data: so the order rotates.
            first = request % len(models)
            order = [*models.items()][first:] + [*models.items()][:first]
            for name, model in order:
                with torch.inference_mode():
                    start = time.perf_counter()
                    model(features).sigmoid()
                    seconds = time.perf_counter() - start
                if request >= 0:
                    taken[name][request] = seconds * 1e3
            progress.update(request >= 0)
        for name, times in taken.items():
            p50, p99 = np.quantile(times, [0.5, 0.99])
            result[name][size] = (float(p50), float(p99))
    progress.close()
    return result


def request_columns(schema: Schema) -> list[str]:
    """The first half of the columns, histories before all: they stand for a request's columns."""
    names = [h.name for h in schema.history]
    # A column may be a number and, in bins, an id too.
    rest = list(dict.fromkeys([*schema.numeric, *(c.name for c in schema.categorical)]))
    return names + rest[: (len(rest) + 1) // 2]


def time_candidates(
    models: dict[str, LiRank], data: Prepared, count: int, repeats: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """p50 in milliseconds of ``count`` candidates of one request: joined rows, and ``score``.

    The columns of the request are those of one test row; the candidates are other test rows.
    """
    generator = np.random.default_rng(seed)
    schema = dataclasses.replace(data.schema, request=request_columns(data.schema))
    own, counts = set(schema.request), torch.tensor([count])
    names = {*schema.numeric, *(c.name for c in schema.categorical), schema.popularity or ""}
    names |= {h.name for h in schema.history}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    before = [model.config.schema for model in models.values()]
    try:
        for model in models.values():
            model.config.schema = schema
        for _ in range(repeats):
            row, others = generator.choice(data.test, 1), generator.choice(data.test, count)
            request, items = data.batch(row, own).features, data.batch(others, names - own).features
            joined = data.joined(row, others, own).features
            for name, model in models.items():
                with torch.inference_mode():
                    start = time.perf_counter()
                    model(joined).sigmoid()
                    middle = time.perf_counter()
                    model.score(request, items, counts).sigmoid()
                    taken[name].append((middle - start, time.perf_counter() - middle))
    finally:
        for model, old in zip(models.values(), before, strict=True):
            model.config.schema = old
    return {name: tuple(np.median(times, axis=0) * 1e3) for name, times in taken.items()}


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability and share of label 1 in bins of as many rows each."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return (
        np.array([probabilities[part].mean() for part in parts]),
        np.array([labels[part].mean() for part in parts]),
    )
