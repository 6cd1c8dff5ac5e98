"""What the text of a cell says: a number, a label, an id, nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .packages import need

LABEL_NAMES = ("label", "target", "click", "clicked", "y")
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
DATE = (
    r"^(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d(?:\.\d+)?))?"
    r"\s*(?:(?:Z|UTC|(?P<sign>[+-])(?P<zone_hours>\d\d):?(?P<zone_minutes>\d\d)?))?)?$"
)
MOSTLY = 0.9  # a text column with this share of numbers is a number column with broken rows


def is_id(column: str, values: np.ndarray) -> bool:
    """Whole numbers in a column called "id", "user_id" or "userId" are names, not amounts."""
    named = re.search(r"(^|[_\s-])id$|[a-z]I[dD]$", column) or column.lower() == "id"
    known = values[~np.isnan(values)]
    return bool(named) and bool(np.all(known == np.floor(known)))


def zero_or_one(text: str) -> float:
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    return {"0": 0.0, "1": 1.0}.get(re.sub(r"^([01])\.0*$", r"\1", text), np.nan)


def seconds(text: Any) -> np.ndarray:
    """Seconds since 1970 of dates and times written year first; NaN where the text is none.

    Args:
        text: an Arrow array of text. Without a time zone, times are taken as UTC.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    parts = pc.extract_regex(text, DATE)

    def field(name: str) -> np.ndarray:
        """The numbers of one field; 0 where it is absent, NaN where the text is no date."""
        digits = pc.struct_field(parts, name)
        digits = pc.if_else(pc.equal(digits, ""), "0", digits)
        return digits.cast(pa.float64()).to_numpy(zero_copy_only=False)

    year, month, day = field("year"), field("month"), field("day")
    hour, minute, second = field("hour"), field("minute"), field("second")
    good = (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 61)
    months = np.where(good, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    date = months.astype("datetime64[D]") + np.where(good, day - 1, 0).astype("timedelta64[D]")
    good &= date.astype("datetime64[M]") == months  # not the 30th of February
    total = date.astype(np.float64) * 86_400 + hour * 3600 + minute * 60 + second
    minus = pc.equal(pc.struct_field(parts, "sign"), "-")
    sign = np.where(pc.fill_null(minus, False).to_numpy(zero_copy_only=False), -1, 1)
    zone = sign * (field("zone_hours") * 3600 + field("zone_minutes") * 60)
    return np.where(good, total - zone, np.nan)
