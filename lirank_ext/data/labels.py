"""Labels looked at as a whole, before a training."""

from __future__ import annotations

import copy

from ..models import Schema, Task
from .broken import Broken
from .columns import ColumnReader
from .errors import DataError
from .source import Source
from .values import says

VALUES_NAMED = 5


def check_labels(source: Source, schema: Schema) -> None:
    """Refuse a task of which no row has the value that counts as 1.

    A file is read only as far as the value is not met.

    Args:
        source: the files to train on.
        schema: its tasks without a value of their own are passed over.

    Raises:
        DataError: no row has the value; the sentence says what values there are.
    """
    for task in schema.tasks:
        if task.positive is not None:
            _check(source, schema, task, task.positive)


def _check(source: Source, schema: Schema, task: Task, positive: str) -> None:
    labels = copy.copy(source)
    labels.columns, labels.broken = [task.source], Broken(skip=True)
    values: dict[str, None] = {}
    for chunk in labels.chunks():
        values.update(dict.fromkeys(ColumnReader(chunk, schema).distinct(task.source)))
        if any(says(value, positive) for value in values):
            return
    there = [f"'{value}'" for value in values if value]
    more = f" and {len(there) - VALUES_NAMED:,} others" if len(there) > VALUES_NAMED else ""
    raise DataError(
        f"{source.files[0].path}: no label '{task.source}' is '{task.positive}': the column holds "
        f"{', '.join(there[:VALUES_NAMED]) or 'nothing'}{more}"
    )
