"""Long-dwell labels: 1 where the time spent is above the percentile of its cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (
    Float64Buffers,
    ResizingBuffers,
    check_number,
    check_positive,
    check_shape,
    refuse,
)


class LongDwellLabels(ResizingBuffers, Float64Buffers):
    """Binary label "stayed longer than the q-quantile of this position, type and platform".

    Each row has one or more cluster numbers, such as ranking position, content type and platform.
    Every combination of them is a cluster with its own threshold. The threshold is the quantile of
    the cluster's dwell times in the window, interpolated linearly between the two nearest values. A
    combination that was seen fewer than ``min_count`` times, or never, gets the quantile of all
    rows. The label is 1 if the dwell time is above the threshold, and 0 otherwise.

    The paper measures the thresholds daily: call :meth:`update` once a day. It gives the 90th
    percentile as an example. The window and ``min_count`` are free choices.

    Args:
        quantile: q, in (0, 1).
        num_columns: number of cluster columns.
        window: how many updates, including the newest, the thresholds are computed from.
        min_count: a cluster needs at least this many rows for a threshold of its own.

    Raises:
        ValueError, TypeError: an argument is out of range, a dwell time is negative or not a
            number, or shapes do not fit.
        RuntimeError: labels are asked for before the first update.

    Source: LiRank (arXiv 2402.06859), on dwell time.
    """

    # The sorted values of every column, one column after the other, and how many each column has.
    values: Tensor
    sizes: Tensor
    # The clusters as sorted numbers, which are made of the positions in ``values``. Then their
    # thresholds, and the threshold of all rows.
    clusters: Tensor
    thresholds: Tensor
    threshold: Tensor
    # Rows of the window's updates that a later update will need, oldest first.
    kept_dwell: Tensor
    kept_columns: Tensor
    kept_counts: Tensor

    def __init__(
        self,
        quantile: float = 0.9,
        num_columns: int = 1,
        window: int = 1,
        min_count: int = 100,
    ) -> None:
        super().__init__()
        owner = "LongDwellLabels"
        check_number(owner, "quantile", quantile, "a number in (0, 1)", 0, 1)
        check_positive(owner, num_columns=num_columns, window=window, min_count=min_count)
        self.quantile, self.num_columns = quantile, num_columns
        self.window, self.min_count = window, min_count
        whole, real = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        self.register_buffer("values", whole.clone())
        self.register_buffer("sizes", torch.zeros(num_columns, dtype=torch.int64))
        self.register_buffer("clusters", whole.clone())
        self.register_buffer("thresholds", real.clone())
        self.register_buffer("threshold", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("kept_dwell", real.clone())
        self.register_buffer("kept_columns", whole.reshape(0, num_columns).clone())
        self.register_buffer("kept_counts", whole.clone())

    def __len__(self) -> int:
        """Number of clusters with a threshold of their own."""
        return len(self.clusters)

    @torch.no_grad()
    def fit(self, dwell: Tensor, columns: Tensor) -> None:
        """Forget the window and measure the thresholds on these rows only."""
        dwell, columns = self._checked(dwell, columns)
        self.kept_dwell, self.kept_columns = dwell[:0], columns[:0]
        self.kept_counts = self.kept_counts[:0]
        self.update(dwell, columns)

    @torch.no_grad()
    def update(self, dwell: Tensor, columns: Tensor) -> None:
        """Add one period's rows, drop rows older than the window, and measure the thresholds.

        Args:
            dwell: (n,) time spent, in any unit. At least one row is needed.
            columns: (n,) or (n, num_columns) whole numbers that define the clusters.
        """
        dwell, columns = self._checked(dwell, columns)
        if not len(dwell):
            refuse("LongDwellLabels", "dwell", "at least one row", "none")
        old = self.kept_counts[max(0, len(self.kept_counts) - self.window + 1) :]
        rows = len(self.kept_dwell) - int(old.sum())
        self._measure(
            torch.cat([self.kept_dwell[rows:], dwell]),
            torch.cat([self.kept_columns[rows:], columns]),
        )
        counts = torch.cat([old, old.new_tensor([len(dwell)])])
        if self.window == 1:  # the next update needs none of these rows
            dwell, columns, counts = dwell[:0], columns[:0], counts[:0]
        self.kept_dwell = torch.cat([self.kept_dwell[rows:], dwell])
        self.kept_columns = torch.cat([self.kept_columns[rows:], columns])
        self.kept_counts = counts

    def _checked(self, dwell: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        owner = "LongDwellLabels"
        check_shape(owner, "dwell", dwell, "n")
        if columns.dim() == 1 and self.num_columns == 1:
            columns = columns.unsqueeze(1)
        check_shape(owner, "columns", columns, len(dwell), self.num_columns)
        if columns.is_floating_point() or columns.is_complex() or columns.dtype == torch.bool:
            refuse(owner, "columns", "whole numbers", columns.dtype, TypeError)
        bad = ~(dwell.isfinite() & (dwell >= 0))
        if bad.any():
            at = int(bad.nonzero()[0])
            refuse(owner, "dwell", "finite times, 0 or more", f"{dwell[at].item()} at row {at}")
        return dwell.double(), columns.long()

    def _measure(self, dwell: Tensor, columns: Tensor) -> None:
        """Measure the threshold of all rows and of every cluster that is large enough."""
        values = [c.unique() for c in columns.unbind(1)]
        sizes = torch.tensor([len(v) for v in values], device=dwell.device)
        if sizes.double().prod() >= 2.0**62:
            refuse("LongDwellLabels", "columns", "fewer than 2^62 combinations", sizes.tolist())
        self.values, self.sizes = torch.cat(values), sizes
        number, _ = self._number(columns)
        order = dwell.argsort(stable=True)
        order = order[number[order].argsort(stable=True)]
        clusters, counts = number[order].unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        enough = counts >= self.min_count
        self.clusters = clusters[enough]
        self.thresholds = self._quantile(dwell[order], (ends - counts)[enough], counts[enough])
        everything = dwell.new_tensor([len(dwell)]).long()
        self.threshold = self._quantile(dwell.sort().values, everything * 0, everything)[0]

    def _quantile(self, ordered: Tensor, start: Tensor, count: Tensor) -> Tensor:
        """The quantile of each run of ``count`` sorted values that begins at ``start``."""
        at = self.quantile * (count - 1).double()
        low = at.floor().long()
        high = torch.minimum(low + 1, count - 1)
        return torch.lerp(ordered[start + low], ordered[start + high], at - low)

    def _number(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The number of each row's combination (n,), and whether all its values are known."""
        number = columns.new_zeros(len(columns))
        known = torch.ones_like(number, dtype=torch.bool)
        for column, values in zip(
            columns.unbind(1), self.values.split(self.sizes.tolist()), strict=True
        ):
            at = torch.searchsorted(values, column.contiguous()).clamp(max=len(values) - 1)
            known &= values[at] == column
            number = number * len(values) + at
        return number, known

    @torch.no_grad()
    def thresholds_of(self, columns: Tensor) -> Tensor:
        """(n,) or (n, num_columns) cluster numbers -> threshold of each row (n,), float64."""
        _, columns = self._checked(torch.zeros(len(columns)), columns)
        if not len(self.values):
            raise RuntimeError("LongDwellLabels: no thresholds yet: call update or fit first")
        number, known = self._number(columns)
        if not len(self.clusters):
            return self.threshold.expand(len(number)).clone()
        at = torch.searchsorted(self.clusters, number).clamp(max=len(self.clusters) - 1)
        known &= self.clusters[at] == number
        return torch.where(known, self.thresholds[at], self.threshold)

    def label(self, dwell: Tensor, columns: Tensor) -> Tensor:
        """Labels (n,) float32: 1 where the dwell time is above its cluster's threshold, else 0."""
        checked, _ = self._checked(dwell, columns)
        return (checked > self.thresholds_of(columns)).float()

    forward = label

    def extra_repr(self) -> str:
        return f"quantile={self.quantile:g}, {len(self)} clusters, window={self.window}"
