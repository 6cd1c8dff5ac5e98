"""Attention among the components of one sample's vectors, on GPUs.

Tokens of width 1: score (i, j) is q_i * k_j / temperature, so the largest of row i is q_i times
the largest or the smallest key, known before any score. A program takes LONG queries of one
sample and walks over its keys in tiles: e = exp2(q_i log2(e) * (k_j - that key)), at most 1,
and the sums of e and e * v. Neither a maximum that moves nor scores in memory. The difference
is taken before the product: after it, scores of 1e12 would be rounded to multiples of 131072,
and a fused multiply-add would not round the two alike.

Keys lie along the lanes, a thread has one of them and 16 queries. The sums over keys stay apart
in registers until the loop is done: adding them up across lanes in the loop took 160 shuffles
for 16 exponentials, which is five times as long as the exponentials take.

Wider tokens: ``cross_attention_tokens``. Backward: ``cross_attention_backward``.

Bytes: 4 B r items. Floor: B * r * r exponentials, 16 a clock and multiprocessor (CUDA
programming guide): r=64, B=4096 are 16.8 M, 4.5 us at 132 x 1.755 GHz (H100, datasheet), against
1.3 us for its 4 MB in float32.

From rank 128 on, ``_attend_nodes`` is timed beside that. A program has one sample, and takes it at
32 Chebyshev nodes where the bound allows (``cross_attention_chebyshev.py``): 32 r exponentials,
not r * r. Along the lanes lie nodes in the sums at the nodes, then coefficients, then queries; a
coefficient reaches all lanes by a shuffle and serves ROWS queries a thread. Other samples are
summed exactly there.

Dropped: keys along the lanes in the sums at the nodes, which then had to be added up across lanes
node by node (46 us at B=4096, r=256 in bfloat16 on an H100; nodes along the lanes: not timed yet).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cross_attention_tokens
from .cross_attention_backward import launch_exact
from .cross_attention_chebyshev import (
    coefficients,
    factor_of,
    is_finite,
    is_level,
    line_of,
    matrix_of,
    node_tiles,
    one_of,
    queries_at,
    sample_of,
    table,
    terms_of,
)
from .cross_attention_nodes import attend_nodes_backward
from .cross_attention_parts import LOG2E, keep, nearest_key, range_of, strides, tiles, value_of
from .launch import batch_class, cdiv, choose, compute_type, launch, rows, size_class, wide


@triton.jit
def _add_keys(sums, k, v, start, r, query, nearest, SHORT: tl.constexpr, MASKED: tl.constexpr):
    """The sums of e and e * v with SHORT more keys."""
    j = start + tl.arange(0, SHORT)
    key = value_of(k, j, r, query.dtype, MASKED)
    value = value_of(v, j, r, query.dtype, MASKED)
    e = tl.exp2(query[:, None] * (key[None, :] - nearest[:, None]))
    if MASKED:
        e = tl.where((j < r)[None, :], e, 0.0)
    return sums[0] + e, sums[1] + e * value[None, :]


@triton.jit
def _add_at_nodes(sums, sample, steep, k, v, start, r, SHORT: tl.constexpr, MASKED: tl.constexpr):
    """D and N at the nodes with SHORT more keys."""
    e, _, value = terms_of(sample, steep, k, v, start, r, SHORT, MASKED)
    return sums[0] + tl.sum(e, 0), sums[1] + tl.sum(e * value[:, None], 0)


@triton.jit
def _attend_rows(
    q, k, v, out, i, r, scale, keys, SKIP: tl.constexpr, SHORT: tl.constexpr, EVEN: tl.constexpr
):
    """The results of the queries i of one sample, whose keys lie in the range ``keys``."""
    COMPUTE: tl.constexpr = keys[0].dtype
    query = value_of(q, i, r, COMPUTE) * tl.full((), scale, COMPUTE)
    nearest = nearest_key(query, keys)
    zero = tl.zeros((i.shape[0], SHORT), COMPUTE)
    sums = (zero, zero)
    whole = r // SHORT * SHORT
    for start in range(0, whole, SHORT):
        sums = _add_keys(sums, k, v, start, r, query, nearest, SHORT, False)
    if not EVEN:
        sums = _add_keys(sums, k, v, whole, r, query, nearest, SHORT, True)
    o = tl.sum(sums[1], 1) / tl.sum(sums[0], 1)
    if SKIP:
        o += value_of(v, i, r, COMPUTE)
    keep(out, o, i, r)


@triton.jit(do_not_specialize=["n"])
def _attend(
    q, k, v, out, n, r, q_row, k_row, v_row, scale: tl.float64,
    SKIP: tl.constexpr, COMPUTE: tl.constexpr, LONG: tl.constexpr, SHORT: tl.constexpr,
    EVEN: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    q, k, v, out = q + row * q_row, k + row * k_row, v + row * v_row, out + row * r
    i = tl.program_id(1) * LONG + tl.arange(0, LONG)
    keys = range_of(k, r, COMPUTE, SPAN)
    _attend_rows(q, k, v, out, i, r, scale, keys, SKIP, SHORT, EVEN)


@triton.jit(do_not_specialize=["n"])
def _attend_nodes(
    q, k, v, table, out, n, r, q_row, k_row, v_row, scale: tl.float64,
    SKIP: tl.constexpr, NODES: tl.constexpr, SHORT: tl.constexpr, EVEN: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One sample: at nodes where the bound allows, else exactly. Queries by ROWS x NODES."""
    row = tl.program_id(0).to(tl.int64)
    q, k, v, out = q + row * q_row, k + row * k_row, v + row * v_row, out + row * r
    factor = tl.full((), scale, tl.float32)
    queries, keys = range_of(q, r, tl.float32, SPAN), range_of(k, r, tl.float32, SPAN)
    sample, places, shape, good = sample_of(k, v, r, queries, keys, factor, NODES, SPAN)
    x = tl.load(table + tl.arange(0, NODES))
    d, o = tl.zeros((NODES,), tl.float32), tl.zeros((NODES,), tl.float32)
    if good:
        sums = (d, o)
        whole, steep = r // SHORT * SHORT, x * places[2]
        for start in range(0, whole, SHORT):
            sums = _add_at_nodes(sums, sample, steep, k, v, start, r, SHORT, False)
        if not EVEN:
            sums = _add_at_nodes(sums, sample, steep, k, v, whole, r, SHORT, True)
        by = factor_of(x, shape)
        d, o = sums[0] * by, sums[1] * by
        good = is_level(d) & is_finite(o)
    if good:
        matrix = matrix_of(table, NODES)
        of_d, of_o = coefficients(d, matrix), coefficients(o, matrix)
        for part in range(0, SPAN // (ROWS * NODES)):
            i, at = queries_at(q, part, places, r, ROWS, NODES)
            before, now = tl.full((ROWS, NODES), 1.0, tl.float32), at
            below, above = line_of(of_d, at), line_of(of_o, at)
            for m in range(2, NODES):
                before, now = now, (at + at) * now - before
                below += one_of(of_d, m) * now
                above += one_of(of_o, m) * now
            y = above / below + sample[3]
            if SKIP:
                y += value_of(v, i, r, tl.float32)
            keep(out, y, i, r)
    else:
        for start in range(0, r, NODES):
            i = start + tl.arange(0, NODES)
            _attend_rows(q, k, v, out, i, r, scale, keys, SKIP, SHORT, EVEN)


def forward(q, k, v, temperature: float, token_dim: int, skip: bool) -> Tensor:
    """softmax(q k^T / ...) v, plus v where ``skip``; rows of q, k and v may be strided."""
    q, k, v = rows(q), rows(k), rows(v)
    n, r = q.shape
    out = torch.empty((n, r), dtype=q.dtype, device=q.device)
    if token_dim > 1:
        return cross_attention_tokens.forward(q, k, v, out, None, temperature, token_dim, skip)
    compute = compute_type(q)
    rest = (out, n, r, *strides(q, k, v), LOG2E / temperature, skip)

    def run(c):
        if "NODES" in c:
            launch(_attend_nodes, (n,), q, k, v, table(q.device), *rest, **c)
        else:
            launch(_attend, (n, cdiv(r, c["LONG"])), q, k, v, *rest, compute, **c)

    key = ("attend", q.dtype, size_class(r), batch_class(n))
    choose(key, (*tiles(r), *node_tiles(q, r)), run)
    return out


def backward(inputs, outputs, temperature: float, token_dim: int, skip: bool) -> None:
    """Write dq, dk, dv (``outputs``, alike in strides) for grad, q, k, v (``inputs``)."""
    grad, q, k, v = inputs = tuple(rows(t) for t in inputs)
    if token_dim > 1:
        return cross_attention_tokens.backward(*inputs, outputs, temperature, token_dim, skip)
    n, r = q.shape
    room = tuple(torch.empty((n, r), dtype=wide(q), device=q.device) for _ in range(2))
    tensors, scale = (*inputs, *outputs, *room), (LOG2E / temperature, 1 / temperature)
    lengths = (*strides(grad, q, k, v), outputs[0].stride(0))

    def run(c):
        if "NODES" in c:
            args = (*tensors, table(q.device), n, r, *lengths, *scale, skip)
            launch(attend_nodes_backward, (n,), *args, **c)
        else:
            launch_exact(c, tensors, n, r, lengths, scale, skip)

    key = ("attend back", q.dtype, size_class(r), batch_class(n))
    choose(key, (*tiles(r), *node_tiles(q, r, backward=True)), run)


def outer_attention(a) -> Tensor:
    """The op on a GPU; no scratch."""
    return forward(a.q, a.k, a.v, a.temperature, a.token_dim, False)


def outer_attention_backward(a) -> tuple[Tensor, ...]:
    """Gradients for q, k and v; scratch: two (B, r), float32 or float64."""
    q = a.q
    found = tuple(torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    backward((a.grad, q, a.k, a.v), found, a.temperature, a.token_dim, False)
    return found
