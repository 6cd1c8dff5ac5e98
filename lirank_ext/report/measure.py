"""What a report shows of a trained model, measured on labeled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.loader import Memory
from ..training import metrics
from ..training.session import ModelOnFiles
from .latency import Latency, time_model
from .layers import Maps, maps_of
from .quantized import Quantized, quantized
from .segments import Segment, chosen, read, segments

BINS = 15


@dataclass
class Task:
    """One task of the model on these rows.

    Attributes:
        name: of the task.
        probabilities, labels: (n,), from the highest probability to the lowest.
        weights: (n,) by which the rows count.
        segments: by column, the rows of each value.
    """

    name: str
    probabilities: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    segments: dict[str, list[Segment]]

    def parts(self, number: int) -> list[dict[str, float]]:
        """The rows in so many parts of equal size, the highest probabilities first.

        Each has ``rows``, ``predicted`` (mean probability), ``observed`` (share of labels of 1),
        ``error`` (standard error of that share) and ``lift`` (by the share of all rows).
        """
        mean, found = self._mean(slice(None)), []
        for rows in np.array_split(np.arange(len(self.labels)), number):
            if not len(rows) or not self.weights[rows].sum():
                continue
            observed = self._mean(rows)
            predicted = float(np.average(self.probabilities[rows], weights=self.weights[rows]))
            # So many rows of equal weight would be as uncertain.
            count = self.weights[rows].sum() ** 2 / (self.weights[rows] ** 2).sum()
            error = float(np.sqrt(observed * (1 - observed) / count))
            lift = observed / mean if mean else float("nan")
            row = {"rows": len(rows), "predicted": predicted, "observed": observed}
            found.append({**row, "error": error, "lift": lift})
        return found

    def _mean(self, rows: Any) -> float:
        return float(np.average(self.labels[rows], weights=self.weights[rows]))

    def gain(self, points: int = 201) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the rows, the highest first, and the share of all labels of 1 among them."""
        seen = np.concatenate([[0.0], np.cumsum(self.weights)])
        found = np.concatenate([[0.0], np.cumsum(self.weights * self.labels)])
        shares = np.linspace(0, 1, points)
        return shares, np.interp(shares, seen / seen[-1], found / max(found[-1], 1e-300))


@dataclass
class Figures:
    """Everything a report shows.

    Attributes:
        metrics: by task, as ``evaluate`` prints them.
        tasks: curves and segments.
        quantized: what int8 and int4 rows would change, or why that is not known.
        maps: of the first cross layers.
        latency: on this machine.
        rows: how many were used.
        columns: that the model reads.
        numbers: parameters and buffers of the model.
        device: where the model ran.
    """

    metrics: dict[str, metrics.Figures]
    tasks: list[Task]
    quantized: Quantized | str
    maps: Maps
    latency: Latency
    rows: int
    columns: list[str]
    numbers: int
    device: str

    def as_json(self) -> dict[str, Any]:
        """The figures of the tables; the curves are left to the page."""
        return {
            "rows": self.rows,
            "metrics": self.metrics,
            "deciles": {t.name: t.parts(10) for t in self.tasks},
            "segments": {
                t.name: {c: [asdict(s) for s in found] for c, found in t.segments.items()}
                for t in self.tasks
            },
            "quantized": self.quantized
            if isinstance(self.quantized, str)
            else asdict(self.quantized),
            "latency": self.latency.as_json(),
        }


def measure(used: ModelOnFiles, columns: Sequence[str] = (), rows: int = 100_000) -> Figures:
    """Everything a report shows of a model.

    Args:
        used: the model and files that it was not trained on, opened with their labels.
        columns: by whose values the AUC is shown; none takes up to three columns of the model that
            have 2 to 12 values.
        rows: how many to use, about, drawn from everywhere.

    Raises:
        DataError: there is no row, or a file has no such column.
    """
    schema, model = used.config.model.schema, used.model
    for column in columns:
        for file in used.loader.source.files:
            file.check(column)
    lists = {h.name for h in schema.history} | {h.actions for h in schema.history}
    lists |= {c.name for c in schema.categorical if c.separator}
    candidates = list(columns) or [name for name in schema.columns if name not in lists]
    sample, groups = read(used, candidates, rows)
    groups = groups if columns else chosen(groups)
    batches = Memory(sample, used.loader.converter, used.loader.batch_size)
    scored = metrics.score(model, batches, used.device)
    tasks = []
    for t, name in enumerate(model.task_names):
        logits, labels, weights = scored.logits[:, t], scored.labels[:, t], scored.weights
        found = {c: segments(some, logits, labels, weights) for c, some in groups.items()}
        order = np.argsort(-logits, kind="stable")
        logits, labels = logits[order].astype(np.float64), labels[order].astype(np.float64)
        counts = np.ones(len(order)) if weights is None else weights[order].astype(np.float64)
        tasks.append(Task(name, 1 / (1 + np.exp(-logits)), labels, counts, found))
    return Figures(
        {name: m.as_json() for name, m in scored.metrics(model.task_names).items()},
        tasks,
        quantized(model, batches, scored, used.device),
        maps_of(model, batches, used.device),
        time_model(model, sample, used.loader.converter, used.device),
        len(sample),
        schema.columns,
        sum(t.numel() for t in (*model.parameters(), *model.buffers())),
        used.device,
    )
