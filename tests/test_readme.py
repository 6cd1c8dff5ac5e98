"""The README's first block runs as it stands, and its commands exist."""

from __future__ import annotations

import json
import re
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


def test_its_figures_are_those_of_the_readings():
    """Every cell of the table is a median of the file that the chart is drawn from."""
    file = REPOSITORY / "benchmarks" / "results" / "cpu-amx-xeon-2026-11-26.json"
    medians = [t["median"] * 1e3 for m in json.loads(file.read_text())["measured"]
               for t in m["timings"]]  # fmt: skip
    table = README.split("|---|---|---|---|---|\n")[1].split("\n\n")[0]
    cells = [c for line in table.splitlines() for c in line.strip("|").split("|")[1:]]
    figures = [n for c in cells for n in re.findall(r"(?<![\w.])\d+\.\d+", c)]
    assert len(figures) > 25
    for figure in figures:
        digits = len(figure.split(".")[1])
        assert any(abs(m - float(figure)) <= 0.5001 * 10**-digits for m in medians), figure


def test_it_stays_short():
    assert len(README.splitlines()) <= 150
