"""Candidates of requests through a residual cross net on GPUs: on joined rows.

The rows ``[request; item]`` are written and go through the kernels of the net. The counts are read
on the host once a call, so no CUDA graph holds this op.

Dropped: each request folded into matrices of its own, as on the CPU (``csrc/simd/cross_score.h``),
by two Triton kernels. On an H100 at d=1024, r=64 and 0.6 of the columns the request's, with 2 + 2
layers, that took 1.79 ms against 0.75 ms of the net on joined rows for 1 request of 500 candidates
in float32, 3.11 against 2.38 ms for 64 requests, and 2.60 against 0.86 ms in bfloat16
(``benchmarks/results/gpu-h100-2026-11-28-first.json``).
"""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cross import _attention, _low_rank, residual_cross_net

Net = namedtuple(
    "Net", "x low_rank attention temperature log_temperatures token_dim skip merge"
)  # as residual_cross_net takes it


def residual_cross_score(a) -> Tensor:
    """The op on a GPU; scratch: (N, d)."""
    items = a.items.shape[0]
    _check_counts(a.counts.tolist(), items)
    requests = torch.arange(a.counts.shape[0], device=a.items.device)
    rows = torch.repeat_interleave(requests, a.counts, output_size=items)
    out = _net(a, torch.cat([a.request[rows], a.items], dim=1))
    return out if a.weight is None else linear(out, a.weight, a.bias)


def _net(a, x0: Tensor) -> Tensor:
    if a.low_rank and a.attention:
        return residual_cross_net(Net(x0, *a[3:10]))
    x = x0
    for i in range(0, len(a.low_rank), 3):
        x = _low_rank(x0, x, *a.low_rank[i : i + 3])
    for i in range(0, len(a.attention), 5):
        q, *layer = a.attention[i : i + 5]
        temperature = a.temperature
        if a.log_temperatures:
            q, temperature = q / a.log_temperatures[i // 5].exp(), 1.0
        x = _attention(x0, x, q, *layer, temperature, a.token_dim, a.skip)[0]
    return x


def _check_counts(counts: list[int], items: int) -> None:
    text = "lirank::residual_cross_score: argument 'counts': wanted "
    if min(counts, default=0) < 0:
        raise ValueError(f"{text}no negative number, got {min(counts)}")
    if sum(counts) != items:
        raise ValueError(
            f"{text}numbers that add up to the {items} rows of items, got a sum of {sum(counts)}"
        )
