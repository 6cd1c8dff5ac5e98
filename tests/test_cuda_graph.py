"""CUDA kernels inside a CUDA graph; run as a script, small calls for the sanitizers."""

from __future__ import annotations

import pytest
import torch

import lirank_ext
from lirank_ext import _build, implementations

needs_kernels = pytest.mark.skipif(
    "cuda" not in implementations("quantized_embedding_bag"),
    reason=f"no CUDA kernels in use: {_build.why_absent('cuda')}",
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
    }


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


if __name__ == "__main__":
    for _call in _calls().values():
        _call()
    torch.cuda.synchronize()
    lirank_ext.check_errors()
