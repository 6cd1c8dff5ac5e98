"""Attention at Chebyshev nodes in Triton, under the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")


def test_nodes_agree_with_the_reference_on_both_sides_of_the_bound():
    environment = os.environ | {"TRITON_INTERPRET": "1", "LIRANK_NO_EXT": "1"}
    command = [sys.executable, REPOSITORY / "tests/triton_attention.py"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["ran"] > 20
    assert not found["failures"], "\n".join(found["failures"])
    sides = found["sides"]
    assert sides["1.0 256"][0] == sides["0.3 150"][0] == 6
    assert sides["6.0 256"][0] == 0  # all refused
    assert all(error < 1e-5 for _, error in sides.values())
