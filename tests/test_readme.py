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
    """Every cell of a row is a median of its op, in the file that the chart is drawn from."""
    file = REPOSITORY / "benchmarks" / "results" / "cpu-amx-xeon-2026-11-26.json"
    measured, op, seen = json.loads(file.read_text())["measured"], "", 0
    table = README.split("|---|---|---|---|---|\n")[1].split("\n\n")[0]
    for line in table.splitlines():
        name, ours, *others = line.strip("|").split("|")
        op = found[1] if (found := re.match(r" `(?:nn\.)?(\w+)`", name)) else op
        of_op = [m for m in measured if op in f"{m['op']} {m['label']}".split()]
        timings = [t for m in of_op for t in m["timings"]]
        own = [t for t in timings if t["provider"].startswith("lirank")]
        for cells, known in (([ours], own), (others, timings)):
            for figure in re.findall(r"(?<![\w.])\d+\.\d+", " ".join(cells)):
                off = 0.5001 * 10 ** -len(figure.split(".")[1])
                assert any(abs(t["median"] * 1e3 - float(figure)) <= off for t in known), line
                seen += 1
    assert seen > 25


def test_it_stays_short():
    assert len(README.splitlines()) <= 150
