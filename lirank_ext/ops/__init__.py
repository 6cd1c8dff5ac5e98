"""One module per op family; each holds definition, fake kernel, backward and registration."""

from . import isotonic

__all__ = ["isotonic"]
