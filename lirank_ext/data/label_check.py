"""Labels of all rows looked at before a training."""

from __future__ import annotations

import copy

from ..models import Schema, Task
from .broken import BadRows
from .columns import ColumnReader
from .labels import labels_of, refuse_equal_labels
from .source import Source


def check_labels(source: Source, schema: Schema) -> None:
    """Refuse a task with a value or a threshold of its own that is the same for all rows.

    The files are read only as far as a label of 0 and one of 1 are not met.

    Args:
        source: the files to train on.
        schema: their columns and tasks.

    Raises:
        DataError: all rows have the same label; the sentence says what values there are.
    """
    for task in schema.tasks:
        if task.positive is not None or task.threshold is not None:
            _check(source, schema, task)


def _check(source: Source, schema: Schema, task: Task) -> None:
    labels = copy.copy(source)
    labels.columns, labels.broken = [task.source], BadRows(skip=True)
    comma = task.source in schema.decimal_comma
    values: dict[str, None] = {}
    for chunk in labels.chunks():
        new = ColumnReader(chunk, schema).text(task.source).unique().to_pylist()
        values.update(dict.fromkeys(new))
        if {0.0, 1.0} <= set(labels_of(task, list(values), comma).tolist()):
            return
    refuse_equal_labels(source.files[0].path, task, list(values), comma)
