"""A hook of MkDocs: puts what ``--help`` prints into the page of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lirank_ext.cli.overview import COMMANDS

MARK = "<!-- every command -->"
REPOSITORY = Path(__file__).resolve().parents[2]


def help_of(*command: str) -> str:
    """What a reader sees of a command's help, on a terminal of 90 columns."""
    return subprocess.run(
        [sys.executable, "-m", "lirank_ext", *command, "--help"],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "90", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the help of every command in place of the mark."""
    if MARK not in markdown:
        return markdown
    parts = [f"```text\n{help_of()}```\n"]
    parts += [f"## {name}\n\n```text\n{help_of(name)}```\n" for name in COMMANDS]
    return markdown.replace(MARK, "\n".join(parts))
