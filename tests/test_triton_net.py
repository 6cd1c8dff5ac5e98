"""The residual cross net in one Triton kernel: interpreted here, run where there is a GPU."""

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

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _ran(arguments: list[str], **switches: str) -> dict:
    command = [sys.executable, REPOSITORY / "tests/triton_net.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | switches)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ran"] > (30 if arguments else 10)
    assert not found["failures"], "\n".join(found["failures"])
    return found


@pytest.mark.parametrize("turn", ["0", "1"])
def test_interpreted_agrees_with_the_reference(turn):
    found = _ran([turn], TRITON_INTERPRET="1", LIRANK_NO_EXT="1")
    # In turn 0 all but the few that go layer by layer; in 1 bfloat16's second tile.
    assert found["whole nets"] >= (30 if turn == "0" else 5)


@needs_gpu
def test_agrees_with_the_reference_on_a_gpu():
    _ran([])


def _net(layers: int = 2, r: int = 64, s: int = 64, dtype: torch.dtype = torch.bfloat16):
    x, v, u, bias = (torch.empty(size, device="meta", dtype=dtype) for size in
                     ((512, 256), (r, 256), (256, r), (256,)))  # fmt: skip
    q, w = (torch.empty(size, device="meta", dtype=dtype) for size in ((s, 256), (256, s)))
    return x, [v, u, bias] * layers, [q, q, q, w, bias] * layers


def _launches(net, token_dim: int = 1, merge: int = 0) -> list[str]:
    from lirank_ext.kernels import launch

    with launch.recording() as recorded:
        gpu.launcher(OPS["residual_cross_net"])(*net, 1.0, [], token_dim, True, merge)
    return [one.kernel.__name__ for one in recorded]


def test_what_fits_is_one_launch_and_the_rest_two_or_layer_by_layer():
    assert _launches(_net()).count("_cross_net") == 2  # two plans
    assert _launches(_net(r=128, s=128)).count("_cross_net") == 4  # two plans of two
    assert _launches(_net(layers=4)).count("_cross_net") == 4
    assert _launches(_net(r=256, s=256)).count("_cross_net") == 2  # one plan of two
    assert _launches(_net(dtype=torch.float32)).count("_cross_net") == 2
    for beyond in (_net(layers=5), _net(r=300), _net(dtype=torch.float64)):
        assert "_cross_net" not in _launches(beyond)
    assert "_cross_net" not in _launches(_net(), token_dim=2)
    x, low, high = _net()
    low[3:] = _net(1, r=32)[1]
    assert "_cross_net" not in _launches((x, low, high))
