"""How this process was started, and whether it has shown anything since."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = "lirank-ext"
_shown = False


def has_shown() -> bool:
    """Whether a table, a line or a progress bar was shown."""
    return _shown


def shows() -> None:
    """Something is shown now: nobody need be told that the program is still at work."""
    global _shown
    _shown = True


def is_command() -> bool:
    """Whether it is the command line: ``lirank-ext`` or ``python -m lirank_ext``.

    Python imports a package before it runs its ``__main__``. The package must then not yet import
    torch, which takes seconds: ``--help`` needs none of it, and Ctrl-C is not handled before
    :func:`lirank_ext.cli.main` runs.
    """
    started = sys.argv[0] if getattr(sys, "argv", None) else ""
    if started == "-m":  # the module's name stands only in the original arguments
        original = sys.orig_argv
        return "lirank_ext" in original and original[original.index("lirank_ext") - 1] == "-m"
    return Path(started).name == PROGRAM
