"""What each column of the files is worth to a trained model, without training another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .._monitors import MONITORS
from ..data.columns import take_bag
from ..data.errors import DataError
from ..data.features import Rows
from ..data.loader import Memory
from ..models import Schema
from .metrics import Metrics, mean, score
from .session import ModelOnFiles


@dataclass
class Importance:
    """Of one column.

    Attributes:
        column: its name.
        loss: how much worse the metric is, on average, where the column's values are shuffled.
        error: the standard error of that mean over the repeats; NaN for a single one.
    """

    column: str
    loss: float
    error: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        return {k: None if v != v else v for k, v in values.items()}


def importance(
    used: ModelOnFiles,
    metric: str = "auc",
    repeats: int = 5,
    rows: int = 50_000,
    tell: Callable[[], None] = lambda: None,
) -> tuple[float, int, list[Importance]]:
    """Permutation importance of every column, the most important first.

    All features that are made of a column (a number and its bin, the parts of a time) are shuffled
    together. Two columns that say the same cover for each other, and both look unimportant.

    Args:
        used: a trained model and files that it was not trained on, opened with their labels.
        metric: what is measured, the mean over the tasks; see :data:`MONITORS`.
        repeats: shuffles of each column.
        rows: how many to measure on, at most.
        tell: called after each measurement.

    Returns:
        the metric of the rows as they are, how many there are, and the columns.

    Raises:
        DataError: there is no row, or the metric cannot be measured on these rows.

    Source: Random Forests (Breiman 2001); Fisher, Rudin and Dominici 2019 (arXiv 1801.01489).
    """
    sample = used.loader.sample(rows)
    schema = used.config.model.schema

    def value(of: Rows) -> float:
        batches = Memory(of, used.loader.converter, used.loader.batch_size)
        found: dict[str, Metrics] = score(used.model, batches, used.device).metrics(
            used.model.task_names
        )
        tell()
        return mean(found, metric)

    whole = value(sample)
    if np.isnan(whole):
        raise DataError(
            f"{metric} cannot be measured on these {len(sample)} rows: choose another metric, or "
            "rows with both labels"
        )
    sign, rng, results = (1 if MONITORS[metric] else -1), np.random.default_rng(0), []
    for column in schema.columns:
        drops = [
            sign * (whole - value(shuffled(sample, schema, column, rng.permutation(len(sample)))))
            for _ in range(repeats)
        ]
        error = np.std(drops, ddof=1) / np.sqrt(repeats) if repeats > 1 else np.nan
        results.append(Importance(column, float(np.mean(drops)), float(error)))
    return whole, len(sample), sorted(results, key=lambda r: -r.loss)


def shuffled(rows: Rows, schema: Schema, column: str, order: np.ndarray) -> Rows:
    """The rows with the features of one column in another order."""
    made = schema.made
    numeric = rows.numeric.copy()
    for i, name in enumerate(schema.numeric):
        if made.get(name, name) == column:
            numeric[:, i] = numeric[order, i]
    keys = {f"ids/{c.name}" for c in schema.categorical if made.get(c.name, c.name) == column}
    for history in schema.history:
        if history.name == column:
            keys.add(f"history/{history.name}/items")
        if column in (history.name, history.actions):
            # Items and actions belong together step by step.
            keys |= {f"history/{history.name}/{part}" for part in ("items", "actions")}
    if schema.popularity == column:
        keys.add("popularity")
    bags = {key: take_bag(bag, order) if key in keys else bag for key, bag in rows.bags.items()}
    return replace(rows, numeric=numeric, bags=bags)
