"""Equality with other packages, if benchmarks/requirements-peers.txt is installed."""

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


class TestFbgemmRows:
    """QuantizedEmbeddingBag against FBGEMM's fused 8-bit rows."""

    @pytest.fixture(autouse=True)
    def _fbgemm(self):
        pytest.importorskip("fbgemm_gpu", reason=PEERS)

    @pytest.mark.parametrize("dim", [4, 32, 129])
    def test_rows_go_out_and_come_in(self, dim):
        plain = torch.nn.EmbeddingBag(300, dim, mode="sum")
        layer = nn.QuantizedEmbeddingBag.from_float(plain)
        theirs = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(layer.to_fbgemm())
        torch.testing.assert_close(layer.dequantize_weight(), theirs, rtol=0, atol=1e-5)
        rows = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(plain.weight.detach())
        back = nn.QuantizedEmbeddingBag.from_fbgemm(rows)
        want = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(rows)
        torch.testing.assert_close(back.dequantize_weight(), want, rtol=0, atol=1e-5)

    def test_look_ups_agree_with_the_table_batched_embedding(self):
        tbe = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_inference")
        common = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        types = pytest.importorskip("fbgemm_gpu.split_embedding_configs")
        place, int8 = common.EmbeddingLocation.HOST, types.SparseType.INT8
        plain = {f"t{t}": torch.nn.EmbeddingBag(40, 32, mode="sum") for t in range(3)}
        specs = [(name, 40, 32, int8, place) for name in plain]
        op = tbe.IntNBitTableBatchedEmbeddingBagsCodegen(
            specs, device="cpu", output_dtype=types.SparseType.FP32
        )
        op.fill_random_weights()
        parts = op.split_embedding_weights(split_scale_shifts=False)
        for (weights, _), module in zip(parts, plain.values(), strict=True):
            rows = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(module.weight.detach())
            half = rows[:, -8:].contiguous().view(torch.float32).half().view(torch.uint8)
            weights.copy_(torch.cat([half, rows[:, :-8]], 1))
        offsets = torch.arange(0, 3 * 8 * 5 + 1, 5)
        ids = torch.randint(0, 40, (3 * 8 * 5,))
        ours = nn.QuantizedEmbeddingBagCollection.from_float(plain)(ids, offsets)
        theirs = op(ids.int(), offsets.int())
        # they keep scale and minimum in float16
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)
