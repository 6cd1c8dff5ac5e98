"""Compares every backend of every op with the float64 reference."""

from .compare import (
    Outcome,
    Row,
    as_json,
    check_case,
    checked_ops,
    passed,
    public_ops,
    summary,
    verify,
)

__all__ = [
    "Outcome",
    "Row",
    "as_json",
    "check_case",
    "checked_ops",
    "passed",
    "public_ops",
    "summary",
    "verify",
]
