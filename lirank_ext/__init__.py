"""Fast PyTorch ops, modules and models for LiRank (arXiv 2402.06859)."""

import importlib
from typing import TYPE_CHECKING

from ._startup import is_command
from ._version import __version__ as __version__

if TYPE_CHECKING or not is_command():
    from ._api import *  # noqa: F403
    from ._api import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """A public name, where a command asks for it: all of them are then there."""
        if name.startswith("__"):
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        api = importlib.import_module(f"{__name__}._api")
        globals().update({public: getattr(api, public) for public in api.__all__})
        return getattr(api, name)
