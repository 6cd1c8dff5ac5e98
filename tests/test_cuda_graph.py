"""CUDA kernels inside a CUDA graph; run as a script, small calls for the sanitizers."""

from __future__ import annotations

import pytest
import torch

import lirank_ext
from lirank_ext import implementations
from lirank_ext.library import build_info

needs_kernels = pytest.mark.skipif(
    "cuda" not in implementations("quantized_embedding_bag"),
    reason=f"no CUDA kernels in use: {build_info.why_absent('cuda')}",
)


def _calls() -> dict:
    """One small call of every op with a CUDA kernel, over fixed inputs."""
    device, dim = "cuda", 40
    weight = torch.randn(50, dim, device=device)
    packed = {bits: lirank_ext.pack_rows(*lirank_ext.quantize_rows(weight, bits), bits)
              for bits in (8, 4)}  # fmt: skip
    ids = torch.randint(0, 50, (60,), device=device)
    offsets = torch.arange(0, 60, 4, device=device)
    tables = [torch.randn(n, dim, device=device, requires_grad=True) for n in (10, 10, 10, 10)]
    rows, dims = torch.tensor([50, 50], device=device), torch.tensor([dim, dim], device=device)
    both = lirank_ext.concatenate_tables([packed[8], packed[8]])
    ends = torch.arange(0, 61, 2, device=device)
    backward = torch.ops.lirank.hashed_embedding_bag_backward
    net = lirank_ext.nn.ResidualCrossNet(dim, 8).to(device).requires_grad_(False)
    grad = torch.randn(15, dim, device=device)
    return {
        "8 bits": lambda: lirank_ext.quantized_embedding_bag(packed[8], ids, offsets, dim),
        "4 bits": lambda: lirank_ext.quantized_embedding_bag(packed[4], ids, offsets, dim, 4),
        "two tables": lambda: lirank_ext.quantized_embedding_bags(
            both, rows, dims, ids, ends, total_dim=2 * dim
        ),
        "hash": lambda: lirank_ext.murmur_hash(ids),
        "hashed": lambda: lirank_ext.hashed_embedding_bag(ids, offsets, *tables, 100).detach(),
        "hashed backward": lambda: torch.cat(
            backward(grad, ids, offsets, None, 100, 10, 0, "sum", False, False)
        ),
        "residual cross net": lambda: _without_gradients(net, grad),
    }


def _without_gradients(net, x):
    with torch.no_grad():
        return net(x)


@needs_kernels
def test_captured_calls_give_what_they_give_outside():
    for name, call in _calls().items():
        wanted = call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            got = call()
        got.fill_(-1)
        graph.replay()
        assert torch.equal(got, wanted), name


@needs_kernels
def test_an_index_out_of_range_is_raised_later_and_reads_zeros():
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(5, 16, device="cuda")))
    ids = torch.tensor([1, 7], device="cuda")
    out = lirank_ext.quantized_embedding_bag(packed, ids, None, 16)
    assert (out[1] == 0).all() and (out[0] != 0).any()
    with pytest.raises(IndexError, match=r"indices\[1\] = 7 .* table 0 with 5 rows"):
        lirank_ext.check_errors()
    lirank_ext.check_errors()


@needs_kernels
def test_sparse_gradients_are_the_dense_ones_and_refuse_a_graph():
    ids, grad = torch.randint(-(1 << 40), 1 << 40, (900,), device="cuda"), torch.randn(900, 40)
    args = (grad.cuda(), ids, None, None, 1000, 10, 0, "sum", False, False)
    dense = torch.ops.lirank.hashed_embedding_bag_backward(*args)
    found = torch.ops.lirank.hashed_embedding_bag_backward_sparse(*args)
    for half in (0, 1):
        rows, values, remainder = found[3 * half : 3 * half + 3]
        assert (rows.diff() > 0).all()
        assert torch.equal(torch.zeros_like(dense[2 * half]).index_copy(0, rows, values),
                           dense[2 * half])  # fmt: skip
        assert torch.equal(remainder, dense[2 * half + 1])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="use sparse=False"), torch.cuda.graph(graph):
        torch.ops.lirank.hashed_embedding_bag_backward_sparse(*args)


if __name__ == "__main__":
    for _call in _calls().values():
        _call()
    torch.cuda.synchronize()
    lirank_ext.check_errors()
