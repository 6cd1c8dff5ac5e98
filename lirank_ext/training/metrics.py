"""How well a model ranks and how well its probabilities fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..data.errors import DataError
from ..data.features import Batch
from ..data.packages import need
from ..models import LiRank

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
    """

    auc: float
    log_loss: float
    observed_to_expected: float
    rows: int
    base_log_loss: float

    def as_json(self) -> Figures:
        """Plain values; None for NaN, which JSON has not."""
        return {k: None if math.isnan(v) else v for k, v in asdict(self).items()}


def measure(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Metrics of logits (n,) against labels (n,), 0 or 1.

    Raises:
        DataError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError(
            "the model's predictions are not finite: train it with a lower lr, or raise warmup"
        )
    rank = need("sklearn.metrics").roc_auc_score
    logits, labels = logits.astype(np.float64), labels.astype(np.float64)
    auc = float(rank(labels, logits)) if 0 < labels.sum() < len(labels) else math.nan
    # Through the logits: a probability rounds to 1 long before its logarithm is 0.
    losses = np.logaddexp(0, logits) - labels * logits
    expected = (1 / (1 + np.exp(-np.clip(logits, -500, 500)))).sum()
    ratio = float(labels.sum() / expected) if expected else math.nan
    loss = float(losses.mean()) if len(losses) else math.nan
    return Metrics(auc, loss, ratio, len(labels), _entropy(labels))


def _entropy(labels: np.ndarray) -> float:
    """The log-loss of a constant: the best one, the share of labels of 1."""
    share = float(labels.mean()) if len(labels) else math.nan
    return -sum(p * math.log(p) if p else 0.0 for p in (share, 1 - share))


@torch.no_grad()
def score(
    model: LiRank, batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits (n, T) and labels (n, T or 0) of all rows; the model in evaluation mode."""
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for batch in batches:
        moved = batch.to(torch.device(device))
        logits.append(model(moved.features).float().cpu().numpy())
        labels.append(batch.labels.numpy())
    model.train(was_training)
    if not logits:
        empty = np.zeros((0, len(model.task_names)), np.float32)
        return empty, empty
    return np.concatenate(logits), np.concatenate(labels)


def evaluate(
    model: LiRank, batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> dict[str, Metrics]:
    """Metrics of every task on all rows."""
    logits, labels = score(model, batches, device)
    return {name: measure(logits[:, t], labels[:, t]) for t, name in enumerate(model.task_names)}


def difference_error(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, name: str) -> float:
    """Standard error of the difference of two models' metric on the same rows.

    Args:
        ours, theirs: logits (n,).
        labels: (n,), 0 or 1.
        name: "auc" (after DeLong, DeLong and Clarke-Pearson 1988) or "log_loss".
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


def mean(metrics: dict[str, Metrics], name: str) -> float:
    """A metric's mean over the tasks."""
    return float(np.mean([getattr(m, name) for m in metrics.values()]))
