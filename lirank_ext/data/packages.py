"""Optional packages, imported where they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..library.packages import install_line
from .errors import MissingPackage


def need(name: str, extra: str = "train") -> ModuleType:
    """Import an optional package.

    Raises:
        MissingPackage: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"this command needs {name.split('.')[0]}, which is not installed: "
            f"{install_line(extra)}"
        ) from error
