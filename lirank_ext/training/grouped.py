"""Rank metrics within groups of rows, such as the rows of one user."""

from __future__ import annotations

import math

import numpy as np


class Grouped:
    """Rows sorted by group, and within it from the highest logit to the lowest.

    Args:
        logits, labels, groups: (n,); labels are 0 or 1.
        weights: (n,); None weighs every row equally.
    """

    def __init__(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        order = np.lexsort((-logits, groups))
        sorted_groups, sorted_logits = groups[order], logits[order]
        self.labels = labels[order].astype(np.float64)
        weights = np.ones(len(order)) if weights is None else weights[order].astype(np.float64)
        self.weights = weights
        new_group = np.append(True, sorted_groups[1:] != sorted_groups[:-1])[: len(order)]
        new_tie = new_group | np.append(True, sorted_logits[1:] != sorted_logits[:-1])[: len(order)]
        self.starts = np.flatnonzero(new_group)
        self.tie_starts = np.flatnonzero(new_tie)
        self.group = np.cumsum(new_group) - 1
        self.tie = np.cumsum(new_tie) - 1

    def _per_group(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self.starts) if len(self.starts) else np.zeros(0)

    def _per_tie(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self.tie_starts) if len(self.tie_starts) else np.zeros(0)

    def auc(self) -> float:
        """GAUC: the mean of the groups' AUC, each weighted by the weight of its rows.

        Groups whose labels are all equal have no AUC and do not count. NaN where no group has one.

        Source: Optimized Cost per Click in Taobao Display Advertising (arXiv 1703.02091).
        """
        positive, negative = self.weights * self.labels, self.weights * (1 - self.labels)
        positives, negatives = self._per_group(positive), self._per_group(negative)
        # Of every row, the negatives of its group that stand below it; half of those beside it.
        tied = self._per_tie(negative)
        after = (np.cumsum(tied) - tied / 2)[self.tie]
        before_group = np.cumsum(negatives)[self.group]
        wins = self._per_group(positive * (before_group - after))
        there = (positives > 0) & (negatives > 0)
        if not there.any():
            return math.nan
        area = wins[there] / (positives[there] * negatives[there])
        return float(np.average(area, weights=(positives + negatives)[there]))

    def ndcg(self) -> float:
        """The mean of the groups' NDCG with the label as the gain; NaN where no label is 1.

        Groups without a label of 1 do not count. Rows with equal logits share their discounts.
        Weights do not enter.
        """
        place = np.arange(len(self.group)) - self.starts[self.group]
        discount = 1 / np.log2(place + 2)
        shared = self._per_tie(discount) / self._per_tie(np.ones(len(discount)))
        gain = self._per_group(self.labels * shared[self.tie])
        positives = self._per_group(self.labels)
        ideal = self._per_group(discount * (place < positives[self.group]))
        there = positives > 0
        return float((gain[there] / ideal[there]).mean()) if there.any() else math.nan
