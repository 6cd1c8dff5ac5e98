"""What a difference between two rows is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lirank_ext.datasets import require

METRICS = ("auc", "log_loss", "miscalibration")


@dataclass(frozen=True)
class Difference:
    """A metric of one row less that of another, seed by seed.

    Attributes:
        each: of every seed.
        mean, deviation: over the seeds; the deviation is NaN for a single seed.
        seeds_bound: what the seeds alone may move the mean by, t(0.975, n - 1) sd / sqrt(n).
        rows_bound: what other test rows may move it by, 1.96 standard errors of the paired
            bootstrap.
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
    return float(require("scipy.stats").t.ppf(0.975, degrees))


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


# ---- metrics of resampled test rows -------------------------------------------------------------


def resamples(clusters: np.ndarray, count: int) -> np.ndarray:
    """(count, n) weights of the rows when whole clusters are drawn with replacement."""
    _, code = np.unique(clusters, return_inverse=True)
    generator, n = np.random.default_rng(0), int(code.max()) + 1
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=count)
    return drawn[:, code].astype(np.float64)


def metrics_of(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Each metric, the mean over iterations and tasks, for every set of weights.

    Args:
        scores: (iterations, n, tasks) logits.
        labels: (n, tasks).
        weights: (R, n), or (1, n) ones for the rows as they are.

    Returns:
        (R,) per metric. ``miscalibration`` is ``|log(observed / expected)|``.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    total = weights.sum(1)
    for logits in scores.astype(np.float64):
        for z, y in zip(logits.T, labels.T.astype(np.float64), strict=True):
            found["auc"].append(auc(z, y, weights))
            found["log_loss"].append(weights @ (np.logaddexp(0, z) - y * z) / total)
            expected = weights @ (1 / (1 + np.exp(-z)))
            found["miscalibration"].append(np.abs(np.log(weights @ y / expected)))
    return {name: np.mean(values, 0) for name, values in found.items()}


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,): area under the ROC curve for weights (R, n); equal scores count half."""
    order = np.argsort(scores, kind="stable")
    firsts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    result = []
    for row in weights:
        weight = row[order]
        positive = np.add.reduceat(weight * labels[order], firsts)
        negative = np.add.reduceat(weight * (1 - labels[order]), firsts)
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        result.append(positive @ (below + negative / 2) / pairs if pairs else math.nan)
    return np.array(result)
