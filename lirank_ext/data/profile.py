"""What a column holds, by a sample of its rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..models import Schema
from .errors import DataError
from .files import Chunk
from .packages import need
from .text import UnreadableColumn, decoded, is_list, is_moment, is_number, is_text, to_text
from .times import form_of, form_of_numbers, seconds, typed_seconds
from .values import EXACT, MOSTLY, is_id_name, plain_numbers, truth

MAX_VALUES = 128  # a number with no more distinct values also gets an id per value
PADDED = r"^0\d+$"
FILLED = 0.5  # whole numbers that fill so much of their range are codes, not amounts
SPARSE = 1000  # whole numbers that lie so far apart, and come again and again, are codes
COUNTED = 20  # rows that must be numbered one by one before a column is called their number
BAR, BARRED = "|", 0.3  # values of a cell are parted where so many cells have a bar
EXAMPLE = 24  # characters of an example


@dataclass
class Profile:
    """What a column holds.

    Attributes:
        name: name of the column.
        rows, missing, distinct: counts of the sample's rows, missing values and different values.
        example: the first value.
        kind: "list", "boolean", "time", "number" or "text".
        numbers: every number of the sample as float64, in no particular order.
        moments: every time of the sample in seconds since 1970, in no particular order.
        form: how the times are written.
        problem: why it is not clear how the times are written; empty where it is clear.
        comma: whether the numbers have a decimal comma.
        mark: the decimal mark that the numbers must have: "comma", "point", "either" if both are
            possible and make a difference, as in 1,234, or "" if there is no difference.
        is_category: whether the file declares the values as categories.
        number_share: share of the values that are numbers.
        separator: the text between the values of a cell, or None where a cell is one value.
        padded: whether a number is written with a leading zero, as in the postal code 01060.
        counts_up: whether every row holds the number that follows the one of the row before.
    """

    name: str
    rows: int
    missing: int = 0
    distinct: int = 0
    example: str = ""
    kind: str = "text"
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0))
    moments: np.ndarray = field(default_factory=lambda: np.zeros(0))
    form: str = "y-m-d"
    problem: str = ""
    comma: bool = False
    mark: str = ""
    is_category: bool = False
    number_share: float = 0.0
    separator: str | None = None
    padded: bool = False
    counts_up: bool = False

    @property
    def id_kind(self) -> str:
        """The ``Categorical.kind`` that the column has as ids."""
        if self.kind == "time":
            return self.form
        known = self.kind in ("number", "boolean") and not self.padded
        return self.kind if known else "text"

    def why_code(self) -> str:
        """The reason why whole numbers are names and not amounts; "" if they are amounts."""
        values = self.numbers
        if self.padded:
            return "numbers with a zero in front"
        if self.is_category:
            return "categories"
        if np.any(values != np.floor(values)):
            return ""
        if is_id_name(self.name):
            return "whole numbers, named as an id"
        if np.abs(values).max() > EXACT:
            return "whole numbers of more than 15 digits"
        if self.distinct <= MAX_VALUES:
            return ""
        wide = values.max() - values.min() + 1
        if self.distinct >= FILLED * wide:
            return "whole numbers that fill their range"
        round_share = np.mean(values % 10 == 0)
        if wide > SPARSE * self.distinct and self._repeats() and round_share < 0.3:
            return "whole numbers far apart that come again and again"
        return ""

    def _repeats(self) -> bool:
        """Whether values repeat more often than amounts spread over the same range would."""
        rows, wide = len(self.numbers), np.ptp(self.numbers)
        return rows - self.distinct > 10 * rows**2 / wide + 0.05 * rows

    def is_spread(self) -> bool:
        """Whether the numbers span orders of magnitude, so that logarithms suit the model."""
        low, middle, high = np.quantile(np.abs(self.numbers), [0.05, 0.5, 0.99])
        return bool(high > 100 and high > 20 * max(middle, low, 1e-9))


def profile(chunks: Sequence[Chunk], column: str, schema: Schema, comma: bool = False) -> Profile:
    """Look at a column of a sample.

    Args:
        chunks: the sample.
        column: name of the column.
        schema: says which texts stand for a missing value.
        comma: whether numbers that could have either decimal mark have a comma.

    Raises:
        DataError: it holds something that cannot be read.
    """
    rows = sum(chunk.table.num_rows for chunk in chunks)
    seen = Profile(column, rows, comma=comma)
    parts = [chunk.table[column] for chunk in chunks]
    types = need("pyarrow").types
    seen.is_category = all(types.is_dictionary(part.type) for part in parts)
    try:
        if any(is_list(part.type) for part in parts):
            _look_at_lists(seen, parts)
        else:
            _look(seen, [decoded(part) for part in parts], chunks, schema)
    except UnreadableColumn as error:
        raise DataError(
            f"{chunks[0].file.path}: column '{column}' {error}; --ignore '{column}' leaves it out"
        ) from error
    return seen


def _look_at_lists(seen: Profile, parts: Sequence[Any]) -> None:
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if not all(is_list(part.type) or pa.types.is_null(part.type) for part in parts):
        raise UnreadableColumn("holds lists in one file and single values in another")
    flat = []
    for part in parts:
        seen.missing += part.null_count
        if is_list(part.type):
            flat.append(decoded(decoded(part).flatten()))
    for part in flat:
        if pa.types.is_floating(part.type) and not pc.all(pc.equal(pc.floor(part), part)).as_py():
            raise UnreadableColumn(
                "holds lists of fractions, which are no ids: give each place a column of its own"
            )
    text = pa.concat_arrays([to_text(part) for part in flat])
    seen.kind, seen.distinct = "list", len(text.unique())
    seen.example = ", ".join(text.slice(0, 3).to_pylist())[:EXAMPLE]


def _look(seen: Profile, parts: list[Any], chunks: Sequence[Chunk], schema: Schema) -> None:
    """Fill in the profile of a column whose cells are single values."""
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    texts = [
        to_text(part, () if chunk.file.is_parquet else schema.missing)
        for part, chunk in zip(parts, chunks, strict=True)
    ]
    counted = pa.concat_arrays(texts).value_counts()
    values, counts = counted.field("values"), counted.field("counts")
    there = pc.not_equal(values, "")
    seen.missing = seen.rows - (pc.sum(counts.filter(there)).as_py() or 0)
    values, counts = values.filter(there), counts.filter(there).to_numpy().copy()
    seen.distinct = len(values)
    if not len(values):
        return
    seen.example = values[0].as_py()[:EXAMPLE]
    kinds = [part.type for part in parts if not pa.types.is_null(part.type)]
    if all(map(is_moment, kinds)):
        seen.kind = "time"
        moments = np.concatenate([typed_seconds(p) for p in parts if is_moment(p.type)])
        seen.moments = moments[np.isfinite(moments)]
        return
    if pc.all(truth(values).is_valid()).as_py() and _has_words(values):
        seen.kind = "boolean"
        return
    # In numbers "NA" is no text, whatever the file says.
    counts[pc.is_in(values, pa.array(schema.missing, values.type)).to_numpy(False)] = 0
    if counts.sum() and _look_for_numbers(seen, values, counts, all(map(is_number, kinds))):
        seen.counts_up = _counts_up(texts[0])
        seen.padded = any(map(is_text, kinds)) and bool(
            pc.any(pc.match_substring_regex(values, PADDED)).as_py()
        )
        whole = None
        if not (is_id_name(seen.name) or seen.is_category or seen.padded):
            whole = form_of_numbers(seen.name, seen.numbers, seen.distinct)
        if whole is not None:
            seen.kind, seen.form = "time", whole
            seen.moments = seconds(values, whole)
            seen.moments = seen.moments[np.isfinite(seen.moments)]
        return
    seen.separator = _separator(values, counts)
    if seen.separator is not None:
        return
    form, seen.problem = form_of(values) if re.search(r"\d", seen.example) else (None, "")
    if form is not None:
        seen.kind, seen.form = "time", form
        moments = seconds(values, form)
        seen.moments = np.repeat(moments, counts)[np.isfinite(np.repeat(moments, counts))]


def _separator(values: Any, counts: np.ndarray) -> str | None:
    """A bar, if it separates values that are found in many different cells; else None."""
    pc = need("pyarrow.compute")
    barred = pc.match_substring(values, BAR).to_numpy(zero_copy_only=False)
    if counts[barred].sum() < BARRED * counts.sum():
        return None
    pieces = pc.utf8_trim_whitespace(pc.split_pattern(values, BAR).flatten()).unique()
    return BAR if len(pieces) < len(values) else None


def _has_words(values: Any) -> bool:
    """Whether some truth values are words, so that the column is not one of numbers 1 and 0."""
    pc = need("pyarrow.compute")
    return bool(pc.any(pc.match_substring_regex(values, "(?i)true|false")).as_py())


def _look_for_numbers(seen: Profile, values: Any, counts: np.ndarray, typed: bool) -> bool:
    """Whether nearly all values are numbers, with a decimal point or with a decimal comma."""
    pa = need("pyarrow")
    plain = {
        comma: plain_numbers(values, comma) for comma in ((False,) if typed else (False, True))
    }
    known = {comma: p.is_valid().to_numpy(zero_copy_only=False) for comma, p in plain.items()}
    share = {comma: counts[k].sum() / counts.sum() for comma, k in known.items()}
    point, comma = share[False], share.get(True, 0.0)
    if point != comma:
        seen.mark = "point" if point > comma else "comma"
        seen.comma = comma > point
    elif not typed:
        seen.mark = "" if plain[False].equals(plain[True]) else "either"
    seen.comma &= not typed
    seen.number_share = float(share[seen.comma])
    if share[seen.comma] < MOSTLY:
        return False
    numbers = plain[seen.comma].cast(pa.float64()).to_numpy(zero_copy_only=False)
    finite = np.isfinite(numbers)
    if not finite.any():
        return False
    seen.kind = "number"
    seen.numbers = np.repeat(numbers[finite], counts[finite])
    return True


def _counts_up(text: Any) -> bool:
    """Whether each text is the whole number that follows the one before it."""
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if len(text) < COUNTED or not pc.all(pc.match_substring_regex(text, r"^\d{1,15}$")).as_py():
        return False
    return bool((np.diff(text.cast(pa.int64()).to_numpy()) == 1).all())
