"""What tests read from Markdown files: code blocks, commands and links."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of every command of this package in the bash blocks, without its name."""
    joined = [block.replace("\\\n", " ") for block in blocks(text, "bash")]
    lines = [line.split("#")[0].split() for block in joined for line in block.splitlines()]
    found = [words[1:] for words in lines if words[:1] == ["lirank-ext"]]
    return found + [words[3:] for words in lines if words[:3] == ["python", "-m", "lirank_ext"]]


def unknown_options(words: list[str]) -> list[str]:
    """The options of a command that its help does not name."""
    known = set(re.findall(r"--[\w-]+", help_of(words[0])))
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    return [option for option in given if option not in known]


@cache
def help_of(command: str) -> str:
    """What ``--help`` prints; a command that does not exist fails."""
    done = subprocess.run(
        [sys.executable, "-m", "lirank_ext", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def missing_links(path: Path) -> list[str]:
    """The links of a page to files that are not there."""
    text = re.sub(
        r"^```.*?^```$|`[^`\n]+`", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text)
    return [target for target in targets if not (path.parent / target).exists()]
