"""CUDA kernels on a GPU: inside a CUDA graph, with bad input, and on inputs beyond ``verify``'s.

Run as a script, it makes a few calls of every op, for the sanitizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lirank_ext
from lirank_ext import implementations
from lirank_ext.library import build_info
from lirank_ext.library.gpu import backend
from lirank_ext.library.op import OPS
from lirank_ext.verify import compare
from lirank_ext.verify.cases import Case, all_cases

sys.path.insert(0, str(Path(__file__).parent))  # as a script with PYTHONSAFEPATH
from cuda_cases import cases as own_cases

SPARSE = "hashed_embedding_bag_backward_sparse"  # waits for the device: no graph holds it
CUDA_OPS = [name for name, op in OPS.items() if backend(op) == "cuda"]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")


@pytest.fixture(autouse=True)
def _clear():
    """What an earlier test left is not this one's finding."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        lirank_ext.check_errors()


@needs_gpu
def test_cuda_kernels_are_in_use():
    """Beside a GPU, absent kernels are a failure: every other test here would pass without one."""
    assert "cuda" in implementations("quantized_embedding_bag"), build_info.why_absent("cuda")
    assert SPARSE in CUDA_OPS and len(CUDA_OPS) >= 14


def _good_cases(op: str) -> list[Case]:
    """Every case of an op that is not refused, also those of its own."""
    return [c for c in (*all_cases(op), *own_cases(op)) if c.raises is None and not c.big]


def _on_gpu(case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """The call of a case, over fixed inputs on the GPU; its results as a tuple."""
    args = [a.cuda() if isinstance(a, Tensor) else a for a in case.call]
    op, mutated = OPS[case.op].overload, OPS[case.op].mutated

    def call() -> tuple[Tensor, ...]:
        own = [i for i in mutated if i < len(args) and args[i] is not None]
        given = [a.clone() if i in own else a for i, a in enumerate(args)]
        with torch.no_grad():
            out = op(*given)
        if own:
            return tuple(given[i] for i in own)
        return out if isinstance(out, tuple) else (out,)

    return call


@needs_gpu
@pytest.mark.parametrize("op", [name for name in CUDA_OPS if name != SPARSE])
def test_captured_calls_give_what_they_give_outside(op):
    found = _good_cases(op)
    assert found
    for case in found:
        if case.op == "quantized_embedding_bags" and case.call[9:] in ((), (-1,)):
            continue  # without total_dim the width has to be waited for
        call = _on_gpu(case)
        wanted = call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call()
        for out in got:
            out.fill_(1)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), case.label
    lirank_ext.check_errors()


@needs_gpu
@pytest.mark.parametrize("op", [name for name in CUDA_OPS if name != SPARSE])
def test_own_inputs_agree_with_the_reference(op):
    outcomes = [compare.check_case(c, OPS[op].overload, "cuda") for c in own_cases(op)]
    assert not [(o.case.label, o.problem) for o in outcomes if not o.passed]


def _sparse_args(case: Case) -> tuple:
    return tuple(a.cuda() if isinstance(a, Tensor) else a for a in case.call)


@needs_gpu
def test_sparse_gradients_are_the_dense_ones():
    for case in own_cases(SPARSE):
        args = _sparse_args(case)
        dense = torch.ops.lirank.hashed_embedding_bag_backward(*args)
        found = torch.ops.lirank.hashed_embedding_bag_backward_sparse(*args)
        for half in (0, 1):
            rows, values, remainder = found[3 * half : 3 * half + 3]
            assert (rows.diff() > 0).all(), case.label
            filled = torch.zeros_like(dense[2 * half]).index_copy(0, rows, values)
            assert torch.equal(filled, dense[2 * half]), case.label
            assert torch.equal(remainder, dense[2 * half + 1]), case.label


@needs_gpu
def test_sparse_gradients_refuse_a_graph():
    args = _sparse_args(own_cases(SPARSE)[-1])
    torch.ops.lirank.hashed_embedding_bag_backward_sparse(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="use sparse=False"), torch.cuda.graph(graph):
        torch.ops.lirank.hashed_embedding_bag_backward_sparse(*args)


@needs_gpu
def test_a_captured_net_gives_what_it_gives_outside():
    net = lirank_ext.nn.ResidualCrossNet(40, 8).cuda().requires_grad_(False)
    x = torch.randn(15, 40, device="cuda")
    wanted = net(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = net(x)
    got.fill_(-1)
    graph.replay()
    assert torch.equal(got, wanted)


@needs_gpu
def test_an_index_out_of_range_is_raised_later_and_reads_zeros():
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(5, 16, device="cuda")))
    ids = torch.tensor([1, 7], device="cuda")
    out = lirank_ext.quantized_embedding_bag(packed, ids, None, 16)
    assert (out[1] == 0).all() and (out[0] != 0).any()
    with pytest.raises(IndexError, match=r"indices\[1\] = 7 .* table 0 with 5 rows"):
        lirank_ext.check_errors()
    lirank_ext.check_errors()


@needs_gpu
def test_a_finding_on_a_side_stream_is_waited_for():
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(5, 16, device="cuda")))
    ids = torch.tensor([7], device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        lirank_ext.quantized_embedding_bag(packed, ids, None, 16)
    with pytest.raises(IndexError, match=r"indices\[0\] = 7"):
        lirank_ext.check_errors()


@needs_gpu
@pytest.mark.parametrize("left", ["packed", "indices"])
def test_a_tensor_left_on_the_cpu_is_named(left):
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(5, 16, device="cuda")))
    given = {"packed": packed, "indices": torch.tensor([1], device="cuda")}
    given[left] = given[left].cpu()
    with pytest.raises(RuntimeError, match=f"quantized_embedding_bag: argument '{left}': wanted"):
        torch.ops.lirank.quantized_embedding_bag(given["packed"], given["indices"], None, 16)


if __name__ == "__main__":
    for _op in CUDA_OPS:
        for _case in _good_cases(_op)[::12]:
            _on_gpu(_case)()
    torch.cuda.synchronize()
    lirank_ext.check_errors()
