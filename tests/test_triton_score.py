"""Scores of requests in Triton without a GPU: interpreted, and compiled for sm_80 and sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")


def _ran(*arguments: str, **switches: str) -> dict:
    command = [sys.executable, REPOSITORY / "tests/triton_score.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | switches)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failures"], "\n".join(found["failures"])
    return found


def test_interpreted_agrees_with_the_reference():
    found = _ran(TRITON_INTERPRET="1", LIRANK_NO_EXT="1")
    assert found["ran"] == 10
    assert found["launched"]["_score"] > 10 and found["launched"]["_fold"] > 10


def test_kernels_compile_without_spills():
    assert len(_ran("compile")["compiled"]) == 8
