"""Rows in hand, such as those of a JSON request, read by the rules of CSV files."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import torch

from ..models import Schema
from .broken import BadRows
from .errors import DataError
from .features import Converter, Rows
from .files import Chunk
from .packages import need
from .values import canonical_numbers

Row = Mapping[str, Any]


class Number(str):
    """A number as JSON spells it, so that no digit is lost."""

    __slots__ = ()


def parse_rows(text: bytes | str) -> list[dict[str, Any]]:
    """The rows of a JSON text: one object, or a list of objects.

    Numbers stay as they are spelled, as :class:`Number`.

    Raises:
        DataError: it is no JSON in UTF-8, holds something else, or a number beyond float64.
    """
    try:
        whole = text.decode("utf-8") if isinstance(text, (bytes, bytearray)) else text
        found = json.loads(
            whole, parse_float=_finite, parse_int=Number, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the request is no JSON: {error}") from error
    rows = found if isinstance(found, list) else [found]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"row {i}: wanted an object of column names and values")
    return rows


def _finite(spelled: str) -> Number:
    if math.isinf(float(spelled)):
        raise DataError(f"the request holds the number {spelled}, which is beyond float64")
    return Number(spelled)


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"the request is no JSON: {name} is no number there; write null")


class _Given:
    """Stands for the file that rows in hand are not in."""

    path, is_parquet = "the request", False

    def where(self, row: int) -> str:
        return f"row {row + 1}"


class RowReader:
    """Makes the tensors that a model reads from rows in hand.

    A cell is read as the same text in a CSV file would be, so that a value has the id that it had
    in training. A number is written without needless digits (7.0 is "7"), a truth value as "true"
    or "false". ``None`` is an empty cell. A list holds the ids of a cell one by one.

    Args:
        schema: of the model.
        max_len: longest history that is kept, ``history.max_len`` of the model's configuration.
    """

    def __init__(self, schema: Schema, max_len: int = 100) -> None:
        self.schema = schema
        self.converter = Converter(schema, BadRows(), labels=False, max_len=max_len)
        self.columns = self.converter.columns
        made = [c.name for c in schema.categorical if c.edges]
        made += [*schema.indicators, *(part.name for part in schema.times)]
        held = [c.name for c in schema.categorical if c.name not in made]
        held += [name for h in schema.history for name in (h.name, h.actions) if name]
        single = {*schema.numeric, *schema.indicators.values(), schema.popularity}
        single |= {part.column for part in schema.times} | {c for c in made if c in self.columns}
        self._may_list = set(held) - single

    def features(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The features of :class:`lirank_ext.models.LiRank`, a row for each row.

        Args:
            rows: values by column. Every column of the model has to be there, with None where its
                value is missing. Other names are passed over.

        Raises:
            DataError: there is no row, a column is not there, or a value does not fit; the
                sentence names row and column.
        """
        return self.converter.batch(self.rows(rows)).features

    def rows(self, rows: Sequence[Row]) -> Rows:
        """The same before they become tensors, for those who join or cut them."""
        if not rows:
            raise DataError("the request holds no rows")
        for i, row in enumerate(rows, 1):
            self._check(i, row)
        # Rows with lists in the same columns make one table.
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, row in enumerate(rows):
            lists = tuple(c for c in self.columns if isinstance(row[c], (list, tuple)))
            alike.setdefault(lists, []).append(i)
        parts = []
        for lists, places in alike.items():
            table = self._table([rows[i] for i in places], places, lists)
            parts.append(self.converter.rows(Chunk(table, 0, 0, _Given(), np.array(places))))
        found = Rows.concatenate(parts)
        return found.take(np.argsort(found.numbers)) if len(parts) > 1 else found

    def _check(self, i: int, row: Row) -> None:
        for column in self.columns:
            if column not in row:
                near = difflib.get_close_matches(column, [*row], 1, 0.5)
                hint = f" ('{near[0]}' is)" if near else ""
                raise DataError(
                    f"row {i}: column '{column}' is not there{hint}; write null where its value "
                    "is missing"
                )
            if isinstance(row[column], (list, tuple)) and column not in self._may_list:
                raise DataError(
                    f"row {i}: column '{column}' holds a list, where one value was wanted"
                )

    def _table(self, rows: Sequence[Row], places: Sequence[int], lists: Sequence[str]) -> Any:
        pa = need("pyarrow")
        columns = {}
        for name in self.columns:
            cells = [row[name] for row in rows]
            if name not in lists:
                columns[name] = self._text(name, cells, places)
                continue
            ends = np.cumsum([0, *map(len, cells)])
            flat = [value for cell in cells for value in cell]
            owners = np.repeat(places, np.diff(ends)).tolist()
            text = self._text(name, flat, owners)
            columns[name] = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), text)
        return pa.table(columns)

    def _text(self, name: str, values: Sequence[Any], places: Sequence[int]) -> Any:
        """The texts that a CSV file would hold, in an Arrow array."""
        pa = need("pyarrow")
        texts: list[str | None] = []
        numbers: list[int] = []
        for value, place in zip(values, places, strict=True):
            text = _spell(value, f"row {place + 1}: column '{name}'")
            if isinstance(text, Number):
                numbers.append(len(texts))
            texts.append(text)
        if numbers:
            spelled = canonical_numbers(pa.array([texts[i] for i in numbers], pa.large_string()))
            comma = name in self.schema.decimal_comma
            for i, text in zip(numbers, spelled.to_pylist(), strict=True):
                texts[i] = text.replace(".", ",") if comma else text
        try:
            return pa.array(texts, pa.large_string())
        except UnicodeEncodeError as error:
            wanted = "text that has UTF-8 was wanted, without lone surrogates"
            raise DataError(f"column '{name}' holds text, where {wanted}") from error


def _spell(value: Any, where: str) -> str | None:
    """The text of one value; a :class:`Number` where it is a number."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return Number(int(value))
    if isinstance(value, (Real, Decimal)):
        if value != value:
            return None
        # A float32 keeps its own shortest spelling, as in a Parquet file.
        return Number(value if isinstance(value, (np.floating, Decimal)) else repr(float(value)))
    kind = "an object" if isinstance(value, Mapping) else type(value).__name__
    kind = "a list in a list" if isinstance(value, (list, tuple)) else kind
    raise DataError(f"{where} holds {kind}, where text, a number, true, false or null was wanted")
