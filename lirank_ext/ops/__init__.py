"""One module per op family; each holds definition, fake kernel, backward and registration."""

from . import cross, isotonic

__all__ = ["cross", "isotonic"]
