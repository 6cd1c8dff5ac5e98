"""What a difference between two rows is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lirank_ext.data.packages import need

METRICS = ("auc", "log_loss", "miscalibration")


@dataclass(frozen=True)
class Difference:
    """A metric of one row less that of another, seed by seed.

    Attributes:
        each: of every seed.
        mean, deviation: over the seeds; the deviation is NaN for a single seed.
        seeds_bound: what the seeds alone may move the mean by, t(0.975, n - 1) sd / sqrt(n).
        rows_bound: what other test rows may move it by, 1.96 paired standard errors.
    """

    each: tuple[float, ...]
    mean: float
    deviation: float
    seeds_bound: float
    rows_bound: float

    @property
    def bound(self) -> float:
        """The noise: the larger of the two."""
        return max(self.seeds_bound, self.rows_bound)

    @property
    def sign(self) -> str:
        """ "+" or "-", "0" inside the noise, "?" where a single seed can't say."""
        if len(self.each) < 2:
            return "?"
        if abs(self.mean) <= self.bound:
            return "0"
        return "+" if self.mean > 0 else "-"


def difference(each: Sequence[float], standard_errors: Sequence[float]) -> Difference:
    """From the differences of every seed and their standard errors over the test rows."""
    n, mean = len(each), float(np.mean(each))
    deviation = float(np.std(each, ddof=1)) if n > 1 else math.nan
    seeds = _t(n - 1) * deviation / math.sqrt(n) if n > 1 else math.inf
    # The seeds share their test rows, so that their errors do not average out.
    rows = 1.96 * float(np.mean(standard_errors))
    return Difference(tuple(map(float, each)), mean, deviation, seeds, rows)


def _t(degrees: int) -> float:
    return float(need("scipy.stats").t.ppf(0.975, degrees))


def verdict(found: str, paper: str) -> str:
    """What a sign says beside the paper's: "+", "0" for no loss, or "" for nothing."""
    if found == "?":
        return "one seed: not judged"
    if paper == "":
        return {"+": "gain", "-": "loss", "0": "inside the noise"}[found]
    if paper == "0":
        return {"+": "gain", "-": "loss: not reproduced", "0": "inside the noise: no loss seen"}[
            found
        ]
    return {"+": "reproduced", "-": "opposite sign: not reproduced", "0": "inside the noise"}[found]


# ---- metrics and what every test row adds to them ----------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A metric of a run on the test rows.

    Attributes:
        value: the mean over iterations and tasks.
        influence: (n,) by how much each row pulls at it: the value with a share of 1 / n more of
            row i is about ``value + influence[i] / n``. Means are 0.
    """

    value: float
    influence: np.ndarray


def measured(scores: np.ndarray, labels: np.ndarray) -> dict[str, Measured]:
    """Every metric of a run.

    Args:
        scores: (iterations, n, tasks) logits.
        labels: (n, tasks).

    Returns:
        By name; ``miscalibration`` is ``|log(observed / expected)|``.
    """
    found: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in METRICS}
    for logits in scores.astype(np.float64):
        for z, y in zip(logits.T, labels.T.astype(np.float64), strict=True):
            found["auc"].append(_auc(z, y))
            loss = np.logaddexp(0, z) - y * z
            found["log_loss"].append((loss.mean(), loss - loss.mean()))
            found["miscalibration"].append(_miscalibration(1 / (1 + np.exp(-z)), y))
    parts = {name: tuple(zip(*values, strict=True)) for name, values in found.items()}
    return {n: Measured(float(np.mean(v)), np.mean(i, 0)) for n, (v, i) in parts.items()}


def _auc(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Area under the ROC curve, equal scores counting half, and DeLong's components."""
    order = np.argsort(scores, kind="stable")
    positive = labels[order]
    firsts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    group = np.cumsum(np.r_[0, np.diff(scores[order]) > 0])
    here = [np.add.reduceat(w, firsts) for w in (positive, 1 - positive)]
    n, positives = len(scores), positive.sum()
    negatives = n - positives
    if not positives or not negatives:
        return math.nan, np.full(n, math.nan)
    below = (np.cumsum(here[1]) - here[1] / 2)[group] / negatives
    above = (positives - np.cumsum(here[0]) + here[0] / 2)[group] / positives
    value = float((below * positive).sum() / positives)
    pull = np.where(positive > 0, (below - value) * n / positives, (above - value) * n / negatives)
    influence = np.empty(n)
    influence[order] = pull
    return value, influence


def _miscalibration(expected: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    ratio = math.log(labels.mean() / expected.mean())
    pull = labels / labels.mean() - expected / expected.mean()
    return abs(ratio), math.copysign(1, ratio) * pull


def standard_error(influence: np.ndarray, clusters: np.ndarray) -> float:
    """Of a metric, or a difference of two, when whole clusters of rows are drawn anew."""
    _, code = np.unique(clusters, return_inverse=True)
    sums = np.bincount(code, influence)
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / max(1, count - 1)) / len(influence))
