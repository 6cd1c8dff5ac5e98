"""Scores of requests in Triton without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")


def test_interpreted_agrees_with_the_reference():
    script = REPOSITORY / "tests/triton_score.py"
    switches = os.environ | {"TRITON_INTERPRET": "1", "LIRANK_NO_EXT": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=switches)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failures"], "\n".join(found["failures"])
    assert found["ran"] == 10
