"""``python -m lirank_ext``: the same command line as ``lirank-ext``."""

import sys

from .cli import main
from .cli.overview import COMMANDS

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
