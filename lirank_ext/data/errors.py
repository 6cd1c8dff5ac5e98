"""What is wrong with an input or an installation, said in one sentence."""

from __future__ import annotations


class DataError(ValueError):
    """Input that cannot be used; the message is one sentence naming file and line."""


class MissingPackage(ImportError):
    """An optional package that a command needs is not installed."""
