"""Labels: how the user names them, and what a cell says of one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..models import Task
from ..models.schema import THRESHOLD
from .errors import DataError
from .packages import need
from .values import LABEL_NAMES, plain_numbers, says, to_float, zero_or_one

if TYPE_CHECKING:
    from .files import File

VALUES_NAMED = 5
COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def parse_labels(file: File, labels: Sequence[str | Task] | None) -> list[Task]:
    """The tasks that labels name.

    Args:
        file: with the columns.
        labels: ``NAME``, ``NAME=VALUE``, ``NAME>=NUMBER`` (or another comparison), or whole tasks.
            If the sequence is empty, there must be a column with a usual name such as "label" or
            "click"; if this is None, such a column is the label where there is one.

    Raises:
        DataError: a column is missing.
    """
    if not labels:
        usual = next((c for c in file.columns if c.lower() in LABEL_NAMES), None)
        if usual is None and labels is None:
            return []
        if usual is None:
            columns = ", ".join(file.columns)
            raise DataError(f"{file.path}: name the label column with --label (one of {columns})")
        labels = [usual]
    tasks = [label if isinstance(label, Task) else _parse(file, label) for label in labels]
    for task in tasks:
        for column in (task.source, *(task.dwell.clusters if task.dwell else ())):
            file.check(column)
    return tasks


def _parse(file: File, label: str) -> Task:
    if label in file.columns:
        return Task(label)
    threshold = THRESHOLD.search(label)
    if threshold is not None:
        name = label[: threshold.start()].rstrip()
        # "income=>50" is the value ">50" of the column "income".
        if name in file.columns or not name.endswith("="):
            return Task(label, name, threshold=threshold["sign"] + threshold["bound"])
    places = [i for i, sign in enumerate(label) if sign == "="]
    # A column's name may hold "=" itself: the longest name that is a column.
    split = next((i for i in reversed(places) if label[:i] in file.columns), None)
    if split is None:
        split = places[0] if places else None
    return Task(label) if split is None else Task(label, label[:split], label[split + 1 :])


def labels_of(task: Task, values: Sequence[str], comma: bool = False) -> np.ndarray:
    """What values of a label column say: 1, 0, or NaN where they say neither.

    Args:
        task: says which values count as 1.
        values: text, "" where one is missing.
        comma: the decimal mark is a comma.
    """
    if task.threshold is not None:
        pa, threshold = need("pyarrow"), THRESHOLD.match(task.threshold)
        numbers = to_float(plain_numbers(pa.array(values, pa.large_string()), comma))
        above = COMPARISONS[threshold["sign"]](numbers, float(threshold["bound"]))
        return np.where(np.isnan(numbers), np.nan, above)
    if task.positive is not None:
        return np.array([says(v, task.positive) if v else np.nan for v in values], np.float64)
    return np.array([zero_or_one(v) for v in values], np.float64)


def refuse_equal_labels(path: Path, task: Task, values: Sequence[str], comma: bool = False) -> None:
    """Refuse a task with a value or a threshold of its own that is the same for all values.

    Raises:
        DataError: it is; the sentence says what values there are.
    """
    if task.positive is None and task.threshold is None:
        return
    kinds = set(labels_of(task, [value for value in values if value], comma).tolist())
    if len(kinds) != 1 or np.isnan(max(kinds)):
        return
    which, wanted = "every" if 1.0 in kinds else "no", task.threshold or f"'{task.positive}'"
    raise DataError(
        f"{path}: {which} label '{task.source}' is {wanted}: the column holds {listed(values)}"
    )


def describe_bad_label(task: Task, value: str, values: Sequence[str]) -> str:
    """What is wrong with a label, and what to do.

    Args:
        task: whose label it is.
        value: the label.
        values: others of the column.
    """
    name = task.source
    if not value:
        return f"the label '{name}' is missing"
    if task.threshold is not None:
        return f"the label '{name}' is '{value}', where a number was wanted"
    ways = [f"'{name}=VALUE'"] if 1 < len(values) <= 20 else []
    if not np.isnan(to_float(plain_numbers(need("pyarrow").array([value])))).any():
        ways.append(f"'{name}>=NUMBER'")
    text = f"the label '{name}' is '{value}', where 0 or 1 was wanted; the column holds "
    text += listed(values)
    return f"{text}: give --label {' or '.join(ways)}" if ways else text


def listed(values: Sequence[str]) -> str:
    """The first few different values, and how many more there are."""
    there = [f"'{value}'" for value in dict.fromkeys(values) if value]
    more = len(there) - VALUES_NAMED
    names = ", ".join(there[:VALUES_NAMED]) or "nothing"
    return f"{names} and {more:,} more" if more > 0 else names
