"""What the text of a cell says: a number, a label, an id, nothing."""

from __future__ import annotations

import re

import numpy as np

LABEL_NAMES = ("label", "target", "click", "clicked", "y")
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
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
