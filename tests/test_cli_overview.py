"""The overview of the commands, their options, examples and completion."""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from documents import unknown_options

from lirank_ext import cli
from lirank_ext._table import print_table
from lirank_ext.cli.overview import COMMANDS, example, overview


def parsers() -> dict[str, argparse.ArgumentParser]:
    whole = cli._parser(list(COMMANDS))
    (subparsers,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    return {"": whole, **subparsers.choices}


PARSERS = parsers()


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_has_a_sentence(name):
    for action in PARSERS[name]._actions:
        what = action.option_strings or action.metavar
        assert action.help and len(action.help.split()) > 1, f"{name} {what}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_prints_a_result_has_json(name):
    """What predict writes is data."""
    options = {option for a in PARSERS[name]._actions for option in a.option_strings}
    assert ("--json" in options) == (name != "predict")


@pytest.mark.parametrize("name", PARSERS)
def test_help_fits_a_terminal_of_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = PARSERS[name].format_help()
    assert max(map(len, text.splitlines())) <= 80
    for code in ("0 ", "1 ", "2 ", "130", "141"):
        assert f"\n  {code}" in text


def test_the_overview_has_every_command_once_with_an_example():
    text = overview()
    lines = [line.strip() for line in text.splitlines()]
    for name in COMMANDS:
        assert lines.count(f"$ {example(name)}") == 1
        assert sum(line.split()[:1] == [name] for line in lines) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_a_call_of_the_command(name):
    words = example(name).split()[1:]
    PARSERS[""].parse_args(words)
    assert not unknown_options(words)


def complete(line: str) -> list[str]:
    """What a shell would be offered after a line."""
    code = "import sys; sys.argv = ['lirank-ext']; from lirank_ext.cli import main; main()"
    read, write = os.pipe()
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    # The answer is written to file descriptor 8.
    command = f'exec 8>&{write}; "$0" -c "$1"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code], env=environment, pass_fds=[write]
    )
    os.close(write)
    assert done.returncode == 0
    with os.fdopen(read) as answer:
        return [word.strip() for word in answer.read().split("\n")]


def test_a_shell_completes_commands_and_options():
    pytest.importorskip("argcomplete")
    assert "evaluate" in complete("lirank-ext ev")
    assert "--label-smoothing" in complete("lirank-ext train data.csv --label-s")


def test_a_terminal_hears_of_a_slow_start(tmp_path):
    """As torch is slow to load: a module that takes long, in its place."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "lirank_ext", "info"]
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=theirs)
    try:
        assert b"lirank-ext info: loading PyTorch ..." in os.read(mine, 1000)
    finally:
        process.kill()
        process.wait()
        os.close(mine)
        os.close(theirs)


@pytest.mark.parametrize("rich", [True, False])
def test_tables_fit_a_terminal_of_80_columns(rich, monkeypatch):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "80")
    rows = [["tables.t_item.quotient_b", "HashedEmbeddingBag", "QuantizedHashedEmbeddingBag"]]
    rows = [[*row, "1,000", "4,000,000", "why it was left, in a sentence of some length"]
            for row in rows]  # fmt: skip
    print_table("", ("table", "was", "now", ">rows", ">bytes", "note"), rows)
    lines = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "4,000,000" in stream.getvalue() and "sentence" in stream.getvalue()
