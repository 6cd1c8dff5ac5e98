"""Equality with outside packages, where benchmarks/requirements-peers.txt is installed."""

from __future__ import annotations

import pytest
import torch

from lirank_ext import nn

PEERS = "benchmarks/requirements-peers.txt is not installed"


class TestTorchRecCross:
    """LowRankCross stacked against TorchRec's LowRankCrossNet with the same weights."""

    def pair(self, dim: int, rank: int, layers: int):
        crossnet = pytest.importorskip("torchrec.modules.crossnet", reason=PEERS)
        theirs = crossnet.LowRankCrossNet(dim, layers, rank)
        ours = [nn.LowRankCross(dim, rank) for _ in range(layers)]
        with torch.no_grad():
            for i, layer in enumerate(ours):
                theirs.bias[i].normal_()
                layer.v.copy_(theirs.V_kernels[i])
                layer.u.copy_(theirs.W_kernels[i])
                layer.bias.copy_(theirs.bias[i])
        return ours, theirs

    @pytest.mark.parametrize(("batch", "dim", "rank", "layers"), [(1, 10, 3, 2), (130, 100, 25, 3)])
    def test_forward_and_gradients_agree(self, batch, dim, rank, layers):
        ours, theirs = self.pair(dim, rank, layers)
        x = torch.randn(batch, dim, requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        y = x
        for layer in ours:
            y = layer(x, y)
        want = theirs(twin)
        scale = float(want.detach().abs().max())
        torch.testing.assert_close(y / scale, want / scale, rtol=0, atol=2e-6)
        g = torch.randn_like(want)
        y.backward(g)
        want.backward(g)
        pairs = [(x, twin)]
        for i, layer in enumerate(ours):
            pairs += [(layer.v, theirs.V_kernels[i]), (layer.u, theirs.W_kernels[i])]
            pairs += [(layer.bias, theirs.bias[i])]
        for a, b in pairs:
            scale = float(b.grad.abs().max())
            torch.testing.assert_close(a.grad / scale, b.grad / scale, rtol=0, atol=5e-6)
