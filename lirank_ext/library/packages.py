"""What to type to get an optional package."""

from __future__ import annotations

import importlib.metadata
import re


def install_line(*extras: str) -> str:
    """The command that installs what some extras of this package name.

    It names the packages themselves: ``lirank_ext[train]`` would have to be found on an index, and
    an installation from a folder is on none.
    """
    try:
        stated = importlib.metadata.requires("lirank_ext") or []
    except importlib.metadata.PackageNotFoundError:  # sources that were never installed
        stated = []
    wanted: dict[str, None] = {}
    for requirement in stated:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == .(\w+)", requirement)
        if name and extra and extra[1] in extras:
            wanted[name[0]] = None
    if not wanted:
        return f"pip install '.[{','.join(extras)}]' in the folder of the sources"
    return "pip install " + " ".join(wanted)
