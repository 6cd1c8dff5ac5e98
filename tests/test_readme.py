"""The README's first block runs as it stands, and its commands exist."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from documents import blocks, commands, missing_links, unknown_options

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_first_block_runs():
    done = subprocess.run([sys.executable, "-c", blocks(README, "python")[0]], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LowRankCross" in done.stdout and "QuantizedEmbeddingBag" in done.stdout


@pytest.mark.parametrize("name", sorted({words[0] for words in commands(README)}))
def test_every_command_and_option_exists(name):
    for words in commands(README):
        if words[0] == name:
            assert not unknown_options(words), words


def test_every_linked_file_is_there():
    assert not missing_links(REPOSITORY / "README.md")


def test_it_stays_short():
    assert len(README.splitlines()) < 180
