"""Dates and times in their usual spellings, read as seconds since 1970."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .packages import need
from .values import MOSTLY, NUMBER

CLOCK = (
    r"(?:[T ](?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d(?:[.,]\d+)?))?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"\s*(?:(?:Z|UTC|GMT|(?P<sign>[+-])(?P<zone_hours>\d\d):?(?P<zone_minutes>\d\d)?))?)?$"
)
DAY, MONTH, YEAR = r"(?P<day>\d\d?)", r"(?P<month>\d\d?)", r"(?P<year>\d{4})"
# Spellings of a date, by the name that a configuration keeps of them.
DATES = {
    "y-m-d": rf"^{YEAR}[-/.]{MONTH}[-/.]{DAY}",
    "d.m.y": rf"^{DAY}\.{MONTH}\.{YEAR}",
    "d/m/y": rf"^{DAY}[/-]{MONTH}[/-]{YEAR}",
    "m/d/y": rf"^{MONTH}[/-]{DAY}[/-]{YEAR}",
    "yyyymmdd": r"^(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)",
}
# Units of times written as numbers since 1970.
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
FORMATS = (*DATES, *UNITS)
FIRST, LAST = 946_684_800.0, 2_114_380_800.0  # the years 2000 to 2036, where numbers may be times
NAMED = re.compile(r"(^|_|\b)(time|date|day|ts|at|on|created|updated|when)(_|\b|$)|time|date", re.I)
DAY_SECONDS = 86_400
OLDEST, NEWEST = -377_705_116_800, 253_402_300_800  # the years -9999 to 9999


def seconds(text: Any, form: str = "y-m-d") -> np.ndarray:
    """Seconds since 1970; NaN for text that is no time of this form.

    Args:
        text: an Arrow array of text. Without a time zone, times are taken as UTC.
        form: one of :data:`FORMATS`.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    if form in UNITS:
        plain = pc.match_substring_regex(text, NUMBER)
        known = pc.if_else(plain, text, pa.scalar(None, text.type)).cast(pa.float64())
        return known.to_numpy(zero_copy_only=False) * UNITS[form]
    parts = pc.extract_regex(text, DATES[form] + CLOCK)

    def field(name: str) -> np.ndarray:
        """The numbers of one field: 0 where it is absent, NaN where the text is no date."""
        digits = pc.replace_substring(pc.struct_field(parts, name), ",", ".")
        digits = pc.if_else(pc.equal(digits, ""), "0", digits)
        return digits.cast(pa.float64()).to_numpy(zero_copy_only=False)

    def letter(name: str) -> np.ndarray:
        letters = pc.utf8_lower(pc.fill_null(pc.struct_field(parts, name), ""))
        return letters.to_numpy(zero_copy_only=False)

    year, month, day = field("year"), field("month"), field("day")
    hour, minute, second = field("hour"), field("minute"), field("second")
    half = letter("half")
    good = (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 61)
    good &= (half == "") | ((hour >= 1) & (hour <= 12))
    hour = np.where(half == "", hour, hour % 12 + 12 * (half == "p"))
    months = np.where(good, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    date = months.astype("datetime64[D]") + np.where(good, day - 1, 0).astype("timedelta64[D]")
    good &= date.astype("datetime64[M]") == months  # not the 30th of February
    total = date.astype(np.float64) * DAY_SECONDS + hour * 3600 + minute * 60 + second
    sign = np.where(letter("sign") == "-", -1, 1)
    zone = sign * (field("zone_hours") * 3600 + field("zone_minutes") * 60)
    return np.where(good, total - zone, np.nan)


def typed_seconds(values: Any) -> np.ndarray:
    """Dates or time stamps of an Arrow array in seconds since 1970; NaN where one is missing."""
    pa = need("pyarrow")
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    unit = values.type.unit
    numbers = values.cast(pa.int64()).cast(pa.float64(), safe=False)
    return numbers.to_numpy(zero_copy_only=False) * UNITS[unit]


def iso(moments: np.ndarray) -> Any:
    """Arrow text such as ``2024-12-31`` or ``2024-12-31T23:59:59.5``.

    One moment has one text, however a file spells it. NaN and moments beyond the years of four
    digits give null.

    Args:
        moments: seconds since 1970.
    """
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    there = (moments >= OLDEST) & (moments < NEWEST)
    micros = np.round(np.where(there, moments, 0) * 1e6).astype(np.int64)
    text = pa.array(micros, mask=~there).cast(pa.timestamp("us")).cast(pa.large_string())
    text = pc.replace_substring_regex(text, r"\.?0*$", "")  # always has a fraction
    text = pc.replace_substring_regex(text, r" 00:00:00$", "")
    return pc.replace_substring(text, " ", "T")


def form_of(text: Any) -> tuple[str | None, str]:
    """The form that nearly all of these texts have; None if they are no dates.

    Args:
        text: an Arrow array without missing values.

    Returns:
        a key of :data:`DATES` or None, and the reason if more than one form fits, else "".
    """
    shares = {form: float(np.isfinite(seconds(text, form)).mean()) for form in DATES}
    del shares["yyyymmdd"]  # a number as well: see form_of_numbers
    best = max(shares, key=shares.__getitem__)
    if not shares[best] >= MOSTLY:
        return None, ""
    if best in ("d/m/y", "m/d/y") and shares["d/m/y"] == shares["m/d/y"]:
        return None, "its dates may be written with the day or with the month first"
    return best, ""


def form_of_numbers(column: str, values: np.ndarray, distinct: int) -> str | None:
    """The form of whole numbers that are times; None for other numbers.

    Numbers are times since 1970 if all fall into the years 2000 to 2036 and most of them are
    different, or the column is named like a time. They are days (20241231) if all are valid days.
    """
    if not len(values) or np.any(values != np.floor(values)):
        return None
    low, high = values.min(), values.max()
    named = NAMED.search(column) is not None
    if distinct < len(values) / 2 and not named:
        return _days(values, named)
    for unit, size in UNITS.items():
        if low * size >= FIRST and high * size <= LAST:
            return unit
    return _days(values, named)


def _days(values: np.ndarray, named: bool) -> str | None:
    """``yyyymmdd`` if every number is a day from 1900 to 2100; None otherwise."""
    if values.min() < 19_000_101 or values.max() > 21_001_231:
        return None
    pa = need("pyarrow")
    text = pa.array(np.unique(values).astype(np.int64)).cast(pa.large_string())
    are_days = np.isfinite(seconds(text, "yyyymmdd")).all()
    return "yyyymmdd" if are_days and (named or len(text) > 10) else None


def parts(moments: np.ndarray, names: Sequence[str], origin: float) -> dict[str, np.ndarray]:
    """Hour of the day, day of the week (Monday is 0) and age in days; NaN where missing.

    Args:
        moments: seconds since 1970.
        names: the parts to return: "hour", "weekday", "age".
        origin: the moment at which the age is 0.
    """
    days = np.floor(moments / DAY_SECONDS)
    all_parts = {
        "hour": np.floor((moments - days * DAY_SECONDS) / 3600),
        "weekday": (days + 3) % 7,  # 1970 began on a Thursday
        "age": (origin - moments) / DAY_SECONDS,
    }
    return {name: all_parts[name] for name in names}
