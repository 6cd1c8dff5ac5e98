"""Made-up rows of a schema, for a model whose data are elsewhere."""

from __future__ import annotations

from typing import Any

from ..models import Schema
from .times import UNITS

MOMENT = {
    "y-m-d": "2024-12-{:02}",
    "d.m.y": "{:02}.12.2024",
    "d/m/y": "{:02}/12/2024",
    "m/d/y": "12/{:02}/2024",
    "yyyymmdd": "202412{:02}",
}
NEW_YEAR = 1_735_689_600  # 2025, in seconds since 1970


def example_rows(schema: Schema, count: int) -> list[dict[str, Any]]:
    """Rows with every column of a schema, values that are missing and cells of several ids.

    Args:
        schema: of a model.
        count: of rows. The same number gives the same rows.
    """
    return [_row(schema, i) for i in range(count)]


def _row(schema: Schema, i: int) -> dict[str, Any]:
    """Cells of every kind of column; where several features read one, numbers come last."""
    row: dict[str, Any] = {}
    if schema.popularity:
        row[schema.popularity] = _value(schema.popularity, schema.kind(schema.popularity), i)
    made = {part.name for part in schema.times} | set(schema.indicators)
    for column in schema.categorical:
        if column.name in made:
            continue
        if column.edges:
            row[column.name] = _missing(i, column.edges[i % len(column.edges)])
        elif column.separator is None:
            row[column.name] = _missing(i, _value(column.name, column.kind, i))
        else:
            row[column.name] = _several(column.name, column.kind, i % 4)
    for history in schema.history:
        candidate = next(c for c in schema.categorical if c.name == history.candidate)
        steps = (i + 1) % 4
        row[history.name] = _several(candidate.name, candidate.kind, steps)
        if history.actions:
            kind = schema.kind(history.actions)
            row[history.actions] = _several(history.actions, kind, steps)
    for name in [*schema.numeric, *schema.indicators.values()]:
        if name not in made:
            row[name] = _missing(i, _number(schema, name, i))
    for part in schema.times:
        row[part.column] = _missing(i, _moment(part.form, i))
    return row


def _missing(i: int, value: Any) -> Any:
    """One row in five has no value."""
    return None if i % 5 == 3 else value


def _value(name: str, kind: str, i: int) -> Any:
    if kind == "text":
        return f"{name} {i}"
    if kind == "number":
        return i
    return i % 2 == 0 if kind == "boolean" else _moment(kind, i)


def _several(name: str, kind: str, count: int) -> list[Any]:
    """A list: texts might hold the separator."""
    return [_value(name, kind, j) for j in range(count)]


def _number(schema: Schema, name: str, i: int) -> float:
    scaling = schema.scaling.get(name)
    center, scale = (scaling.center, scaling.scale) if scaling else (1.0, 1.0)
    return center + scale * (i * 3 % 5 - 2) / 2


def _moment(form: str, i: int) -> Any:
    if form in UNITS:
        return round((NEW_YEAR + 3600 * i) / UNITS[form])
    return MOMENT[form].format(i % 28 + 1)
