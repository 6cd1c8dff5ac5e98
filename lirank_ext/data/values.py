"""What the text of a cell means: a number, a truth value or a label."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from .packages import need

LABEL_NAMES = ("label", "target", "click", "clicked", "y")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
# Whole thousands between marks of one kind: 1,234.5 or, with a decimal comma, 1.234,5.
MARKED = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$|^[+-]?\d{1,3}([' \x{A0}\x{202F}]\d{3})+(\.\d+)?$"
COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+|\d{1,3}([' \x{A0}\x{202F}]\d{3})+)?(,\d*)?$"
MOSTLY = 0.9  # a text column with this share of numbers is a number column with broken rows
WHOLE = r"^(-?[1-9]\d*|0)$"
TRUE, FALSE = r"^((?i)true|1(\.0*)?)$", r"^((?i)false|0(\.0*)?)$"
EXACT = 2**53  # whole numbers beyond it are rounded by float64


def is_id_name(column: str) -> bool:
    """Whether a column is called "id", "user_id" or "userId"."""
    return bool(re.search(r"(^|[_\s-])id$|[a-z]I[dD]$", column)) or column.lower() == "id"


def plain_numbers(text: Any, comma: bool = False) -> Any:
    """Numbers without thousands marks and with a decimal point; null for other text.

    Args:
        text: an Arrow array of text.
        comma: whether the decimal mark is a comma.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    none = pa.scalar(None, text.type)
    if comma:
        digit = pc.match_substring_regex(text, r"\d")
        marked = pc.and_(pc.match_substring_regex(text, COMMA), digit)
        plain = pc.replace_substring_regex(text, r"[.' \x{A0}\x{202F}]", "")
        return pc.if_else(marked, pc.replace_substring(plain, ",", "."), none)
    number = pc.match_substring_regex(text, NUMBER)
    if pc.all(number).as_py():
        return text
    marked = pc.match_substring_regex(text, MARKED)
    plain = pc.replace_substring_regex(text, r"[,' \x{A0}\x{202F}]", "")
    return pc.if_else(number, text, pc.if_else(marked, plain, none))


def to_float(plain: Any) -> np.ndarray:
    """float64 of what :func:`plain_numbers` gives; NaN of null."""
    pa = need("pyarrow")
    return plain.cast(pa.float64()).to_numpy(zero_copy_only=False)


def canonical_numbers(plain: Any) -> Any:
    """The numbers with one spelling for each: 7, 7.0 and +7e0 become "7", .50 becomes "0.5".

    No digit is lost, however long a number is.

    Args:
        plain: what :func:`plain_numbers` returned.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    # Whole numbers, also those with zeros after the point, are the common case.
    text = pc.replace_substring_regex(plain, r"(\d)\.0*$", r"\1")
    rest = pc.fill_null(pc.invert(pc.match_substring_regex(text, WHOLE)), False)
    if not pc.any(rest).as_py():
        return text
    spelled = [_canonical(value) for value in text.filter(rest).to_pylist()]
    return pc.replace_with_mask(text, rest, pa.array(spelled, text.type))


def _canonical(text: str) -> str:
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent beyond any bound
        return text
    if number == 0:
        return "0"
    # Beyond float64 a number written out would only be long.
    if not number.is_finite() or abs(number.adjusted()) > 400:
        return text
    written = format(number, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


def truth(text: Any) -> Any:
    """The text "true" or "false" for these words and for 1 and 0; null for other text."""
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    none = pa.scalar(None, text.type)
    false = pc.if_else(pc.match_substring_regex(text, FALSE), "false", none)
    return pc.if_else(pc.match_substring_regex(text, TRUE), "true", false)


def zero_or_one(text: str) -> float:
    """The label as a number; NaN for other text."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    return {"0": 0.0, "1": 1.0}.get(re.sub(r"^([01])\.0*$", r"\1", text), np.nan)


def says(text: str, wanted: str) -> bool:
    """Whether a label is the wanted value, also if both spell one number or truth value."""
    if text == wanted:
        return True
    pa = need("pyarrow")
    both = pa.array([text, wanted], pa.large_string())
    for spelling in (canonical_numbers(plain_numbers(both)), truth(both)):
        one, two = spelling.to_pylist()
        if one is not None and one == two:
            return True
    return False
