"""The README's first block runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_block_runs():
    done = subprocess.run([sys.executable, "-c", _blocks("python")[0]], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LowRankCross" in done.stdout and "QuantizedEmbeddingBag" in done.stdout


def _commands() -> list[list[str]]:
    lines = [line.split("#")[0].split() for block in _blocks("bash") for line in block.splitlines()]
    found = [words[1:] for words in lines if words[:1] == ["lirank-ext"]]
    return found + [words[3:] for words in lines if words[:3] == ["python", "-m", "lirank_ext"]]


@pytest.mark.parametrize("name", sorted({words[0] for words in _commands()}))
def test_every_command_and_option_exists(name):
    done = subprocess.run(
        [sys.executable, "-m", "lirank_ext", name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for words in _commands():
        if words[0] == name:
            assert all(word in done.stdout for word in words if word.startswith("--")), words


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
