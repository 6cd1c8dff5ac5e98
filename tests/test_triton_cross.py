"""Low-rank cross layers in bfloat16 as Hopper gets them: interpreted here, run where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _launched(arguments: list[str], **switches: str) -> set[str]:
    command = [sys.executable, REPOSITORY / "tests/triton_cross.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | switches)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ran"] > 15
    assert not found["failures"], "\n".join(found["failures"])
    return set(found["launched"])


@pytest.mark.parametrize(
    ("turn", "wanted"),
    [
        ("0", {"_cross", "_cross_backward", "_expand"}),
        ("3", {"_cross", "_project", "_gradients", "_add_parts", "_expand"}),
        ("4", {"_project", "_gradients", "_expand_persistent"}),
        ("5", {"_expand", "_cross_backward", "_epilogue"}),
    ],
)
def test_interpreted_agrees_with_the_reference(turn, wanted):
    assert wanted <= _launched([turn], TRITON_INTERPRET="1", LIRANK_NO_EXT="1")


@needs_gpu
def test_agrees_with_the_reference_on_a_gpu():
    _launched([])
