"""What is wrong with an input or an installation, said in one sentence."""

from __future__ import annotations

from ..errors import UserError


class DataError(UserError, ValueError):
    """Input that cannot be used; the message is one sentence naming file and line."""


class MissingPackage(UserError, ImportError):
    """An optional package that a command needs is not installed."""
