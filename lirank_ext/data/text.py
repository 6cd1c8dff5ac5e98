"""Cells of any Arrow type as text, with one spelling for each value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .packages import need
from .times import iso, seconds, typed_seconds
from .values import canonical_numbers, plain_numbers, truth


class UnreadableColumn(ValueError):
    """A column cannot be read. The message continues a sentence that starts with its name."""


def is_number(kind: Any) -> bool:
    """Whether an Arrow type holds numbers."""
    types = need("pyarrow").types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def is_text(kind: Any) -> bool:
    """Whether an Arrow type holds text, or bytes that may be text."""
    types = need("pyarrow").types
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    known = any(getattr(types, f"is_{name}", lambda _: False)(kind) for name in names)
    return known or types.is_fixed_size_binary(kind)


def is_moment(kind: Any) -> bool:
    """Whether an Arrow type holds dates or time stamps."""
    types = need("pyarrow").types
    return types.is_date(kind) or types.is_timestamp(kind)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type holds a list in a cell."""
    types = need("pyarrow").types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def decoded(values: Any) -> Any:
    """One Arrow array, with the values of categories in place of their codes."""
    pa = need("pyarrow")
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def to_text(values: Any, missing: Sequence[str] = ()) -> Any:
    """The values as text without spaces around it, "" where a value is missing.

    Args:
        values: an Arrow array.
        missing: texts that stand for a missing value, besides the empty text.

    Raises:
        UnreadableColumn: a cell is not a single value, or holds bytes that are not UTF-8.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    values, text = decoded(values), pa.large_string()
    kind = values.type
    if pa.types.is_null(kind):
        return pa.array([""] * len(values), text)
    if is_text(kind):
        values = pc.fill_null(pc.utf8_trim_whitespace(_utf8(values)), "")
        if not missing:
            return values
        return pc.if_else(pc.is_in(values, pa.array(missing, text)), "", values)
    if pa.types.is_boolean(kind):
        values = pc.if_else(values, "true", "false").cast(text)
    elif is_number(kind):
        values = canonical_numbers(_written(values))
    elif is_moment(kind):
        values = iso(typed_seconds(values))
    elif pa.types.is_time(kind):
        values = pc.replace_substring_regex(values.cast(text), r"\.0*$", "")
    elif pa.types.is_duration(kind):
        values = canonical_numbers(values.cast(pa.int64()).cast(text))
    else:
        raise UnreadableColumn(f"holds {kind}, not one value")
    return pc.fill_null(values, "")


def _utf8(values: Any) -> Any:
    pa = need("pyarrow")
    if pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.large_binary())
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        what = "holds bytes that are not UTF-8 text: write them as text (as hexadecimal digits)"
        raise UnreadableColumn(what) from error


def _written(values: Any) -> Any:
    """Numbers in the text that Arrow writes for them; NaN becomes null."""
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return values.cast(pa.large_string())


def spelled(text: Any, kind: str, comma: bool = False) -> Any:
    """The text with one spelling for each value.

    Args:
        text: what :func:`to_text` returned.
        kind: kind of the column. "text" leaves the text as it is. "number", "boolean" and the
            forms of :mod:`.times` change the texts that are of this kind and leave all others.
        comma: whether its numbers have a decimal comma.
    """
    pc = need("pyarrow.compute")
    if kind == "text":
        return text
    if kind == "number":
        # A file may hold truth values in a column that held 0 and 1 when the model was trained.
        ones = {"true": "1", "false": "0"}
        known = canonical_numbers(plain_numbers(text, comma))
        words = truth(text)
        for word, digit in ones.items():
            known = pc.coalesce(known, pc.if_else(pc.equal(words, word), digit, None))
        return pc.coalesce(known, text)
    if kind == "boolean":
        return pc.coalesce(truth(text), text)
    return pc.coalesce(iso(seconds(text, kind)), text)


def to_numbers(values: Any, missing: Sequence[str], comma: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values as float64, NaN where one is missing, and which cells hold no finite number.

    Args:
        values: an Arrow array.
        missing: texts that stand for a missing value, besides the empty text.
        comma: whether numbers in text have a decimal comma.

    Raises:
        UnreadableColumn: as :func:`to_text`.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    values = decoded(values)
    if is_number(values.type):
        if pa.types.is_float16(values.type):
            values = values.cast(pa.float32())
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers, np.isinf(numbers)
    if pa.types.is_boolean(values.type):
        numbers = values.cast(pa.int8()).cast(pa.float64()).to_numpy(zero_copy_only=False)
        return numbers, np.zeros(len(numbers), bool)
    text = to_text(values, missing)
    plain = plain_numbers(text, comma)
    if plain.null_count:
        words = truth(text)
        for word, digit in (("true", "1"), ("false", "0")):
            plain = pc.coalesce(plain, pc.if_else(pc.equal(words, word), digit, None))
    numbers = plain.cast(pa.float64()).to_numpy(zero_copy_only=False)
    there = pc.not_equal(text, "").to_numpy(zero_copy_only=False)
    return numbers, there & ~np.isfinite(numbers)
