"""What the demo measures of a ranker: quality, bytes and latency."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .._progress import Progress
from ..models import LiRank
from ..training.metrics import measure, score
from .prepare import Prepared

REQUESTS = {1: 500, 64: 300, 1024: 150}  # batch size to number of timed requests


@dataclass
class Reading:
    """One variant of the ranker; latency: batch size to (p50, p99) in milliseconds."""

    name: str
    auc: float
    log_loss: float
    observed_over_expected: float
    embedding_bytes: int
    model_bytes: int
    probabilities: np.ndarray
    latency: dict[int, tuple[float, float]] = field(default_factory=dict)

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
