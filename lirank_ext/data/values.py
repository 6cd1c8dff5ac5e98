"""What the text of a cell says: a number, a truth value, a label, an id, nothing."""

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
    """Numbers without thousands marks and with a decimal point; null where the text is none.

    Args:
        text: an Arrow array of text.
        comma: the decimal mark is a comma.
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
    """One spelling of every number: 7, 7.0 and +7e0 are "7", .50 is "0.5"; exact to any length.

    Args:
        plain: what :func:`plain_numbers` gives.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    # The common ones at once: whole numbers, also with zeros behind the point.
    text = pc.replace_substring_regex(plain, r"\.0*$", "")
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
    """ "true" or "false" for these words in any case and for 1 and 0; null for all else."""
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    none = pa.scalar(None, text.type)
    false = pc.if_else(pc.match_substring_regex(text, FALSE), "false", none)
    return pc.if_else(pc.match_substring_regex(text, TRUE), "true", false)


def zero_or_one(text: str) -> float:
    """What a label says; NaN where it is neither."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    return {"0": 0.0, "1": 1.0}.get(re.sub(r"^([01])\.0*$", r"\1", text), np.nan)


def says(text: str, wanted: str) -> bool:
    """Whether a label is the wanted value, in whatever spelling of a number or truth value."""
    if text == wanted:
        return True
    pa = need("pyarrow")
    both = pa.array([text, wanted], pa.large_string())
    for spelling in (canonical_numbers(plain_numbers(both)), truth(both)):
        one, two = spelling.to_pylist()
        if one is not None and one == two:
            return True
    return False
