"""FlopCounterMode counts the ops as it counts the same layers in plain PyTorch."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lirank_ext import nn
from lirank_ext.conversion.swap import use_references


def count(model, inputs, backward):
    with FlopCounterMode(display=False) as counter:
        y = model(*inputs)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


LAYERS = {
    "low rank": (lambda: nn.LowRankCross(24, 5), 2),
    "attention": (lambda: nn.AttentionCross(24, 6), 2),
    "tokens": (lambda: nn.AttentionCross(24, 6, token_dim=2), 2),
    "net": (lambda: nn.ResidualCrossNet(24, 5, 2, attention_rank=6), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_serving_counts_as_plain_pytorch(name):
    make, arguments = LAYERS[name]
    model = make().eval()
    inputs = (torch.randn(7, 24),) * arguments
    with torch.no_grad():
        found = count(model, inputs, False)
        assert found == count(use_references(copy.deepcopy(model)), inputs, False)
    assert found > 0


@pytest.mark.parametrize("name", LAYERS)
def test_training_counts_what_plain_pytorch_does_or_computes_again(name):
    make, arguments = LAYERS[name]
    model = make()
    inputs = (torch.randn(7, 24, requires_grad=True),) * arguments
    plain = count(use_references(copy.deepcopy(model)), inputs, True)
    assert plain <= count(model, inputs, True) <= 1.5 * plain


def test_the_counter_knows_the_ops_whichever_was_imported_first():
    for order in ("lirank_ext, torch.utils.flop_counter", "torch.utils.flop_counter, lirank_ext"):
        code = (
            f"import {order}, torch\n"
            "mode = torch.utils.flop_counter.FlopCounterMode(display=False)\n"
            "x, w = torch.zeros(3, 4), torch.zeros(2, 4)\n"
            "with mode: lirank_ext.low_rank_cross(x, x, w, w.T.contiguous(), None)\n"
            "assert mode.get_total_flops() == 4 * 3 * 4 * 2, mode.get_total_flops()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
