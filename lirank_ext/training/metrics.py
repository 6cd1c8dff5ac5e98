"""How well a model ranks and how well its probabilities fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..data.errors import DataError
from ..data.features import Batch
from ..data.packages import need
from ..models import LiRank
from .grouped import Grouped
from .processes import ONE, Processes

Figures = dict[str, float | None]


@dataclass
class Metrics:
    """Of one task.

    Attributes:
        auc: area under the ROC curve; NaN where all labels are equal.
        log_loss: mean, natural logarithm.
        observed_to_expected: labels of 1 by the sum of the probabilities; 1 is calibrated.
        rows: how many.
        base_log_loss: of the share of labels of 1 as the probability of every row.
        pr_auc: area under the curve of precision and recall (average precision); NaN where no
            label is 1.
        gauc, ndcg: of :class:`Grouped`; NaN where the rows have no groups.
    """

    auc: float
    log_loss: float
    observed_to_expected: float
    rows: int
    base_log_loss: float
    pr_auc: float = math.nan
    gauc: float = math.nan
    ndcg: float = math.nan

    def as_json(self) -> Figures:
        """Plain values; None for NaN, which JSON has not."""
        return {k: None if math.isnan(v) else v for k, v in asdict(self).items()}


GROUPED = ("gauc", "ndcg")


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Metrics:
    """Metrics of logits (n,) against labels (n,), 0 or 1.

    Args:
        logits, labels: of the rows.
        weights: (n,) by which rows count; None counts each once.
        groups: (n,) the group of each row; None measures nothing within groups.

    Raises:
        DataError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError(
            "the model's predictions are not finite: train it with a lower lr, or raise warmup"
        )
    metrics = need("sklearn.metrics")
    logits, labels = logits.astype(np.float64), labels.astype(np.float64)
    w = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    positive, total = float((w * labels).sum()), float(w.sum())
    rank = metrics.roc_auc_score if 0 < positive < total else _nothing
    area = metrics.average_precision_score if positive > 0 else _nothing
    auc, pr_auc = (float(f(labels, logits, sample_weight=weights)) for f in (rank, area))
    # Through the logits: a probability rounds to 1 long before its logarithm is 0.
    losses = np.logaddexp(0, logits) - labels * logits
    expected = float((w / (1 + np.exp(-np.clip(logits, -500, 500)))).sum())
    ratio = positive / expected if expected else math.nan
    loss = float((w * losses).sum()) / total if total else math.nan
    base = _entropy(positive / total if total else math.nan)
    grouped = None if groups is None else Grouped(logits, labels, groups, weights)
    within = (grouped.auc(), grouped.ndcg()) if grouped is not None else (math.nan, math.nan)
    return Metrics(auc, loss, ratio, len(labels), base, pr_auc, *within)


def _nothing(*args: Any, **options: Any) -> float:
    return math.nan


def _entropy(share: float) -> float:
    """The log-loss of a constant: the best one, the share of labels of 1."""
    return -sum(p * math.log(p) if p else 0.0 for p in (share, 1 - share))


@dataclass
class Scored:
    """What a model says of rows, and what is known of them.

    Attributes:
        logits: (n, T), calibrated.
        labels: (n, T); (n, 0) where they were not read.
        weights, groups: (n,), where the rows have them.
    """

    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None

    def metrics(self, tasks: Sequence[str]) -> dict[str, Metrics]:
        """Metrics of every task."""
        others = (self.weights, self.groups)
        columns = zip(self.logits.T, self.labels.T, strict=True)
        return {
            name: measure(*column, *others) for name, column in zip(tasks, columns, strict=True)
        }


@torch.no_grad()
def score(
    model: LiRank,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    processes: Processes = ONE,
) -> Scored:
    """Logits of all rows, by the model in evaluation mode.

    Several processes, which all have the model and the rows, each score some of the batches, and
    each of them gets the logits of all.
    """
    was_training = model.training
    model.eval()
    logits, labels, weights, groups = [], [], [], []
    for i, batch in enumerate(batches):
        if processes.takes(i):
            moved = batch.to(torch.device(device))
            logits.append(model(moved.features).float().cpu().numpy())
        else:
            logits.append(np.zeros((len(batch), len(model.task_names)), np.float32))
        labels.append(batch.labels.numpy())
        weights += [] if batch.weights is None else [batch.weights.numpy()]
        groups += [] if batch.groups is None else [batch.groups.numpy()]
    model.train(was_training)
    if not logits:
        empty = np.zeros((0, len(model.task_names)), np.float32)
        return Scored(empty, empty)
    parts = (np.concatenate(p) if p else None for p in (weights, groups))
    # Adding the zeros of other processes changes no logit.
    together = processes.sum(torch.from_numpy(np.concatenate(logits))).numpy()
    return Scored(together, np.concatenate(labels), *parts)


def evaluate(
    model: LiRank,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    processes: Processes = ONE,
) -> dict[str, Metrics]:
    """Metrics of every task on all rows; those of several processes are the first one's."""
    scored = score(model, batches, device, processes)
    return processes.from_first(lambda: scored.metrics(model.task_names))


def difference_error(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, name: str) -> float:
    """Standard error of the difference of two models' metric on the same rows.

    Args:
        ours, theirs: logits (n,).
        labels: (n,), 0 or 1.
        name: "log_loss", or another of the monitors, for which the error of the AUC (after DeLong,
            DeLong and Clarke-Pearson 1988) stands.
    """
    if name == "log_loss":
        sign = 1 - 2 * labels
        gap = np.logaddexp(0, sign * ours) - np.logaddexp(0, sign * theirs)
        return float(gap.std(ddof=1) / math.sqrt(len(gap)))
    positive = labels == 1
    rank = need("scipy.stats").rankdata
    shares = []
    for logits in (ours, theirs):
        whole, high, low = rank(logits), rank(logits[positive]), rank(logits[~positive])
        # Of every positive the share of negatives below it, of every negative that of positives.
        shares.append((whole[positive] - high) / len(low))
        shares.append((whole[~positive] - low) / len(high))
    gaps = (shares[0] - shares[2], shares[1] - shares[3])
    return math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps))


def check_usable(metrics: dict[str, Metrics], monitor: str) -> None:
    """Refuse rows to validate on that do not give the metric that a training goes by.

    Raises:
        DataError: there are none, or they lack a label or a group.
    """
    for name, m in metrics.items():
        if not m.rows:
            raise DataError("no row to validate on: raise valid, or give a file of its own")
        if not math.isnan(getattr(m, monitor)):
            continue
        if monitor in GROUPED:
            raise DataError(
                f"the {m.rows} rows to validate on hold no group with both labels '{name}': "
                "raise valid, or choose another --group or --monitor"
            )
        raise DataError(
            f"the {m.rows} rows to validate on all have the same label '{name}': raise "
            "valid, or set monitor to log_loss"
        )


def mean(metrics: dict[str, Metrics], name: str) -> float:
    """A metric's mean over the tasks."""
    return float(np.mean([getattr(m, name) for m in metrics.values()]))
