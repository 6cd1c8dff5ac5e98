"""Compares every backend of every op with the float64 reference."""

from .compare import check_case, checked_ops, public_ops, verify
from .outcome import Outcome, Row, as_json, passed, summary

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
