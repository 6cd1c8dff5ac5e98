"""Triton kernels without a GPU: interpreted and compared with the reference, and compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from lirank_ext.library import gpu
from lirank_ext.library.op import OPS
from lirank_ext.ops import cross as ops

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")

FAMILIES = sorted({op.family for op in OPS.values()})


@pytest.mark.parametrize("family", FAMILIES)
def test_interpreted_launchers_agree_with_the_reference(family):
    environment = os.environ | {"TRITON_INTERPRET": "1", "LIRANK_NO_EXT": "1"}
    command = [sys.executable, REPOSITORY / "tests/triton_interpreted.py", family]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["ran"] > 10
    assert not found["failures"], "\n".join(found["failures"])


def test_every_op_has_a_launcher():
    assert not [name for name, op in OPS.items() if not gpu.has_launcher(op)]


def test_importing_the_package_loads_no_triton():
    script = "import lirank_ext, sys; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_kernel_compiles_without_spills_and_as_recorded():
    from lirank_ext.benchmarks import triton_resources

    measured = triton_resources.measure((90,))
    # An sm_80 has less shared memory. What is far from a limit on one is far from it on the other.
    near = {
        (r.kernel, r.configuration) for r in measured if r.shared > 64 * 1024 or r.registers > 160
    }
    assert near
    measured += triton_resources.measure((80,), only=near)
    assert not [r for r in measured if r.problem]
    kept = (REPOSITORY / "benchmarks/results/triton_resources.md").read_text()
    for r in measured:  # registers differ between releases of Triton; the configurations do not
        assert f"| `{r.kernel}` | {r.configuration} |" in kept, "write the table again"


def test_training_keeps_the_same_columns_everywhere():
    """The number stands in ``ops/``, ``kernels/`` and ``csrc/``."""
    from lirank_ext.kernels import cross as kernels

    for d in range(1, 200, 7):
        for r in (1, 2, 15, 16, 33, 64, 130):
            kept = ops.kept_columns(d, r)
            assert kernels.kept_columns(d, r) == kept
            x, v, u = torch.ones(1, d), torch.ones(r, d), torch.ones(d, r)
            assert OPS["low_rank_cross_train"].overload(x, x, v, u, None)[1].shape == (1, kept)
