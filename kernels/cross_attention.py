"""Attention among the components of one sample's vectors, on GPUs.

Tokens of width 1: score (i, j) is q_i * k_j / temperature, so the largest of row i is q_i times
the largest or the smallest key, known before any score. A program takes QUERIES rows of one
sample and walks over its keys in tiles: e = exp2(q_i log2(e) * (k_j - that key)), at most 1,
and the sums of e and e * v. Neither a maximum that moves nor scores in memory. The difference
is taken before the product: after it, scores of 1e12 would be rounded to multiples of 131072,
and a fused multiply-add would not round the two alike.

Backward in two kernels, each exponential once: by query for dq (the sums of e, e v, e k, e v k;
dq = grad * covariance of v and k), leaving 1 / sum and the output; by key for dk and dv.

Wider tokens: the usual tiled attention with a running maximum, one sample and QUERIES tokens a
program, the width padded to 16 for the tensor cores. Tokens wider than 128: at most r / 128 of
them, plain batched products.

Bytes: 4 B r items forward, 7 backward. Floor: B * r * r exponentials, 16 a clock and
multiprocessor (CUDA programming guide): r=64, B=4096 are 16.8 M, 4.5 us at 132 x 1.755 GHz (H100,
datasheet), against 1.3 us for its 4 MB in float32. Backward twice that.

Dropped: interpolation at Chebyshev nodes as on the CPU (its bound needs a look at the data, which
would decide between two paths per sample); keeping the (r, r) exponentials in registers for one
backward kernel (256 registers a thread at r=128).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.ops._cross_checks import check_attention, check_grad

from ._launch import batch_class, choose, compute_type, dot, launch, rows, size_class

LOG2E = math.log2(math.e)
WIDEST = 128  # tokens of more components are few: their scores are plain batched products


@triton.jit
def _value(t, row, column, stride, r, COMPUTE: tl.constexpr):
    return tl.load(t + row * stride + column, mask=column < r, other=0).to(COMPUTE)


@triton.jit
def _extremes(k, row, stride, r, COMPUTE: tl.constexpr, KEYS: tl.constexpr):
    """The largest and the smallest key of one sample."""
    high, low = tl.full((KEYS,), -float("inf"), COMPUTE), tl.full((KEYS,), float("inf"), COMPUTE)
    for start in range(0, r, KEYS):
        j = start + tl.arange(0, KEYS)
        key = _value(k, row, j, stride, r, COMPUTE)
        high = tl.maximum(high, tl.where(j < r, key, -float("inf")))
        low = tl.minimum(low, tl.where(j < r, key, float("inf")))
    return tl.max(high, 0), tl.min(low, 0)


@triton.jit(do_not_specialize=["n"])
def _attend(
    q,
    k,
    v,
    out,
    n,
    r,
    q_row,
    k_row,
    v_row,
    scale: tl.float64,
    SKIP: tl.constexpr,
    COMPUTE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _value(q, row, i, q_row, r, COMPUTE) * tl.full((), scale, COMPUTE)
    high, low = _extremes(k, row, k_row, r, COMPUTE, KEYS)
    nearest = tl.where(query < 0, low, high)
    total, weighted = tl.zeros((QUERIES,), COMPUTE), tl.zeros((QUERIES,), COMPUTE)
    for start in range(0, r, KEYS):
        j = start + tl.arange(0, KEYS)
        key, value = _value(k, row, j, k_row, r, COMPUTE), _value(v, row, j, v_row, r, COMPUTE)
        e = tl.exp2(query[:, None] * (key[None, :] - nearest[:, None]))
        e = tl.where((j < r)[None, :], e, 0.0)
        total += tl.sum(e, 1)
        weighted += tl.sum(e * value[None, :], 1)
    o = weighted / total
    if SKIP:
        o += _value(v, row, i, v_row, r, COMPUTE)
    tl.store(out + row * r + i, o.to(out.dtype.element_ty), mask=i < r)


@triton.jit(do_not_specialize=["n"])
def _attend_by_query(
    grad,
    q,
    k,
    v,
    dq,
    inverse,
    output,
    n,
    r,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale: tl.float64,
    step: tl.float64,
    COMPUTE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """dq; 1 / sum of exponentials and the output, for the other kernel."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _value(q, row, i, q_row, r, COMPUTE) * tl.full((), scale, COMPUTE)
    high, low = _extremes(k, row, k_row, r, COMPUTE, KEYS)
    nearest = tl.where(query < 0, low, high)
    total, by_value = tl.zeros((QUERIES,), COMPUTE), tl.zeros((QUERIES,), COMPUTE)
    by_key, by_both = tl.zeros((QUERIES,), COMPUTE), tl.zeros((QUERIES,), COMPUTE)
    for start in range(0, r, KEYS):
        j = start + tl.arange(0, KEYS)
        key, value = _value(k, row, j, k_row, r, COMPUTE), _value(v, row, j, v_row, r, COMPUTE)
        away = key[None, :] - nearest[:, None]
        e = tl.where((j < r)[None, :], tl.exp2(query[:, None] * away), 0.0)
        total += tl.sum(e, 1)
        by_value += tl.sum(e * value[None, :], 1)
        by_key += tl.sum(e * away, 1)
        by_both += tl.sum(e * away * value[None, :], 1)
    one = 1.0 / total
    o = by_value * one
    g = _value(grad, row, i, grad_row, r, COMPUTE)
    found = g * tl.full((), step, COMPUTE) * (by_both * one - o * (by_key * one))
    tl.store(dq + row * d_row + i, found.to(dq.dtype.element_ty), mask=i < r)
    tl.store(inverse + row * r + i, one, mask=i < r)
    tl.store(output + row * r + i, o, mask=i < r)


@triton.jit(do_not_specialize=["n"])
def _attend_by_key(
    grad,
    q,
    k,
    v,
    dk,
    dv,
    inverse,
    output,
    n,
    r,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale: tl.float64,
    step: tl.float64,
    SKIP: tl.constexpr,
    COMPUTE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    key, value = _value(k, row, j, k_row, r, COMPUTE), _value(v, row, j, v_row, r, COMPUTE)
    high, low = _extremes(k, row, k_row, r, COMPUTE, KEYS)
    key_total, value_total = tl.zeros((KEYS,), COMPUTE), tl.zeros((KEYS,), COMPUTE)
    for start in range(0, r, QUERIES):
        i = start + tl.arange(0, QUERIES)
        raw = _value(q, row, i, q_row, r, COMPUTE)
        query = raw * tl.full((), scale, COMPUTE)
        nearest = tl.where(query < 0, low, high)
        g = _value(grad, row, i, grad_row, r, COMPUTE)
        share = g * _value(inverse, row, i, r, r, COMPUTE)
        o = _value(output, row, i, r, r, COMPUTE)
        e = tl.exp2(query[:, None] * (key[None, :] - nearest[:, None])) * share[:, None]
        e = tl.where((i < r)[:, None], e, 0.0)
        value_total += tl.sum(e, 0)
        key_total += tl.sum(e * raw[:, None] * (value[None, :] - o[:, None]), 0)
    if SKIP:
        value_total += _value(grad, row, j, grad_row, r, COMPUTE)
    key_total *= tl.full((), step, COMPUTE)
    tl.store(dk + row * d_row + j, key_total.to(dk.dtype.element_ty), mask=j < r)
    tl.store(dv + row * d_row + j, value_total.to(dv.dtype.element_ty), mask=j < r)


# ---- wider tokens --------------------------------------------------------------------------


@triton.jit
def _tokens(t, row, token, width, stride, h, w, COMPUTE: tl.constexpr):
    """(tokens, width) of one sample; zeros outside."""
    inside = (token < h)[:, None] & (width < w)[None, :]
    at = t + row * stride + token[:, None] * w + width[None, :]
    return tl.load(at, mask=inside, other=0).to(COMPUTE)


@triton.jit
def _keep_tokens(t, value, row, token, width, stride, h, w):
    inside = (token < h)[:, None] & (width < w)[None, :]
    at = t + row * stride + token[:, None] * w + width[None, :]
    tl.store(at, value.to(t.dtype.element_ty), mask=inside)


@triton.jit
def _scores(query, keys, token, h, PRECISION: tl.constexpr, COMPUTE: tl.constexpr):
    """In powers of two; -inf behind the last key."""
    zero = tl.zeros((query.shape[0], keys.shape[0]), COMPUTE)
    s = dot(query, tl.trans(keys), zero, PRECISION)
    return tl.where((token < h)[None, :], s, -float("inf"))


@triton.jit(do_not_specialize=["n"])
def _attend_tokens(
    q,
    k,
    v,
    out,
    log_sum,
    n,
    h,
    w,
    q_row,
    k_row,
    v_row,
    scale: tl.float64,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The output, and where wanted log2 of each row's sum of exponentials."""
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _tokens(q, row, i, width, q_row, h, w, COMPUTE) * tl.full((), scale, COMPUTE)
    largest = tl.full((QUERIES,), -float("inf"), COMPUTE)
    total, o = tl.zeros((QUERIES,), COMPUTE), tl.zeros((QUERIES, WIDTH), COMPUTE)
    for start in range(0, h, KEYS):
        j = start + tl.arange(0, KEYS)
        keys = _tokens(k, row, j, width, k_row, h, w, COMPUTE)
        s = _scores(query, keys, j, h, PRECISION, COMPUTE)
        larger = tl.maximum(largest, tl.max(s, 1))
        shrink, e = tl.exp2(largest - larger), tl.exp2(s - larger[:, None])
        total = total * shrink + tl.sum(e, 1)
        values = _tokens(v, row, j, width, v_row, h, w, COMPUTE)
        o = dot(e, values, o * shrink[:, None], PRECISION)
        largest = larger
    o = o / total[:, None]
    if SKIP:
        o += _tokens(v, row, i, width, v_row, h, w, COMPUTE)
    _keep_tokens(out, o, row, i, width, h * w, h, w)
    if log_sum is not None:
        tl.store(log_sum + row * h + i, largest + tl.log2(total), mask=i < h)


@triton.jit(do_not_specialize=["n"])
def _tokens_by_query(
    grad,
    q,
    k,
    v,
    o,
    log_sum,
    dq,
    inner,
    n,
    h,
    w,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale: tl.float64,
    step: tl.float64,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """dq, and <grad, output> of every query."""
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _tokens(q, row, i, width, q_row, h, w, COMPUTE) * tl.full((), scale, COMPUTE)
    g = _tokens(grad, row, i, width, grad_row, h, w, COMPUTE)
    mean = tl.sum(g * _tokens(o, row, i, width, h * w, h, w, COMPUTE), 1)
    log_total = tl.load(log_sum + row * h + i, mask=i < h, other=0)
    found = tl.zeros((QUERIES, WIDTH), COMPUTE)
    for start in range(0, h, KEYS):
        j = start + tl.arange(0, KEYS)
        keys = _tokens(k, row, j, width, k_row, h, w, COMPUTE)
        values = _tokens(v, row, j, width, v_row, h, w, COMPUTE)
        e = tl.exp2(_scores(query, keys, j, h, PRECISION, COMPUTE) - log_total[:, None])
        da = dot(g, tl.trans(values), tl.zeros((QUERIES, KEYS), COMPUTE), PRECISION)
        found = dot(e * (da - mean[:, None]), keys, found, PRECISION)
    _keep_tokens(dq, found * tl.full((), step, COMPUTE), row, i, width, d_row, h, w)
    tl.store(inner + row * h + i, mean, mask=i < h)


@triton.jit(do_not_specialize=["n"])
def _tokens_by_key(
    grad,
    q,
    k,
    v,
    log_sum,
    inner,
    dk,
    dv,
    n,
    h,
    w,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale: tl.float64,
    step: tl.float64,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    j = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    keys = _tokens(k, row, j, width, k_row, h, w, COMPUTE)
    values = _tokens(v, row, j, width, v_row, h, w, COMPUTE)
    key_total, value_total = tl.zeros((KEYS, WIDTH), COMPUTE), tl.zeros((KEYS, WIDTH), COMPUTE)
    for start in range(0, h, QUERIES):
        i = start + tl.arange(0, QUERIES)
        raw = _tokens(q, row, i, width, q_row, h, w, COMPUTE)
        g = _tokens(grad, row, i, width, grad_row, h, w, COMPUTE)
        log_total = tl.load(log_sum + row * h + i, mask=i < h, other=float("inf"))
        mean = tl.load(inner + row * h + i, mask=i < h, other=0)
        query = raw * tl.full((), scale, COMPUTE)
        e = tl.exp2(_scores(query, keys, j, h, PRECISION, COMPUTE) - log_total[:, None])
        value_total = dot(tl.trans(e), g, value_total, PRECISION)
        da = dot(g, tl.trans(values), tl.zeros((QUERIES, KEYS), COMPUTE), PRECISION)
        key_total = dot(tl.trans(e * (da - mean[:, None])), raw, key_total, PRECISION)
    if SKIP:
        value_total += _tokens(grad, row, j, width, grad_row, h, w, COMPUTE)
    _keep_tokens(dk, key_total * tl.full((), step, COMPUTE), row, j, width, d_row, h, w)
    _keep_tokens(dv, value_total, row, j, width, d_row, h, w)


# ---- launchers ---------------------------------------------------------------------------


def _tiles(r: int) -> tuple[dict, ...]:
    """(QUERIES, KEYS) that do not exceed r by much."""
    side = min(64, max(16, triton.next_power_of_2(r)))
    half = max(16, side // 2)
    return (
        {"QUERIES": side, "KEYS": half, "num_warps": 4},
        {"QUERIES": half, "KEYS": side, "num_warps": 2},
    )


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _token_tiles(t: Tensor, h: int, w: int) -> dict:
    """One configuration: 16 or 32 tokens a side. Products of float32 take three tf32 passes."""
    side = 32 if h > 16 and w <= 64 and t.dtype != torch.float64 else 16
    constants = {"PRECISION": "ieee" if t.dtype == torch.float64 else "tf32x3"}
    constants |= {"COMPUTE": compute_type(t), "WIDTH": max(16, triton.next_power_of_2(w))}
    return constants | {"QUERIES": side, "KEYS": side, "num_warps": 4}


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(t.stride(0) for t in tensors)


def forward(q, k, v, temperature: float, token_dim: int, skip: bool) -> Tensor:
    """softmax(q k^T / ...) v, plus v where ``skip``; rows of q, k and v may be strided."""
    q, k, v = rows(q), rows(k), rows(v)
    n, r = q.shape
    out = torch.empty((n, r), dtype=q.dtype, device=q.device)
    if token_dim > 1:
        return _forward_tokens(q, k, v, out, None, temperature, token_dim, skip)
    compute = compute_type(q)

    def run(c):
        grid = (n, triton.cdiv(r, c["QUERIES"]))
        args = (q, k, v, out, n, r, *_strides(q, k, v), LOG2E / temperature, skip, compute)
        launch(_attend, grid, *args, **c)

    choose(("attend", q.dtype, size_class(r), batch_class(n)), _tiles(r), run)
    return out


def _forward_tokens(q, k, v, out, log_sum, temperature, w, skip) -> Tensor:
    (n, r), scale = q.shape, temperature * math.sqrt(w)
    h = r // w
    if w > WIDEST:
        found = _weights(q, k, scale, w) @ _as_tokens(v, w)
        return out.copy_(found.reshape(n, r) + (v if skip else 0))
    c = _token_tiles(q, h, w)
    grid = (n, triton.cdiv(h, c["QUERIES"]))
    args = (q, k, v, out, log_sum, n, h, w, *_strides(q, k, v), LOG2E / scale, skip)
    launch(_attend_tokens, grid, *args, **c)
    return out


def _as_tokens(t: Tensor, w: int) -> Tensor:
    return t.to(_wide(t)).reshape(t.shape[0], -1, w)


def _weights(q: Tensor, k: Tensor, scale: float, w: int) -> Tensor:
    return torch.softmax(_as_tokens(q, w) @ _as_tokens(k, w).transpose(1, 2) / scale, -1)


def backward(inputs, outputs, temperature: float, token_dim: int, skip: bool) -> None:
    """Write dq, dk, dv (``outputs``, alike in strides) for grad, q, k, v (``inputs``)."""
    grad, q, k, v = (rows(t) for t in inputs)
    if token_dim > 1:
        return _backward_tokens(grad, q, k, v, outputs, temperature, token_dim, skip)
    (n, r), (dq, dk, dv) = q.shape, outputs
    inverse, output = (torch.empty((n, r), dtype=_wide(q), device=q.device) for _ in range(2))
    scale, compute = (LOG2E / temperature, 1 / temperature), compute_type(q)
    strides = (*_strides(grad, q, k, v), dq.stride(0))

    def run(c):
        grid = (n, triton.cdiv(r, c["QUERIES"]))
        args = (grad, q, k, v, dq, inverse, output, n, r, *strides, *scale, compute)
        launch(_attend_by_query, grid, *args, **c)
        grid = (n, triton.cdiv(r, c["KEYS"]))
        args = (grad, q, k, v, dk, dv, inverse, output, n, r, *strides, *scale, skip, compute)
        launch(_attend_by_key, grid, *args, **c)

    choose(("attend back", q.dtype, size_class(r), batch_class(n)), _tiles(r), run)


def _backward_tokens(grad, q, k, v, outputs, temperature, w, skip) -> None:
    (n, r), (dq, dk, dv), scale = q.shape, outputs, temperature * math.sqrt(w)
    h = r // w
    if w > WIDEST or h == 1:  # one token: its gradients of q and k are exactly 0
        return _backward_wide(grad, q, k, v, outputs, scale, w, skip)
    wide = {"dtype": _wide(q), "device": q.device}
    o = torch.empty((n, r), **wide)
    log_sum, inner = (torch.empty((n, h), **wide) for _ in range(2))
    _forward_tokens(q, k, v, o, log_sum, temperature, w, False)
    c = _token_tiles(q, h, w)
    rest = (n, h, w, *_strides(grad, q, k, v), dq.stride(0), LOG2E / scale, 1 / scale)
    grid = (n, triton.cdiv(h, c["QUERIES"]))
    launch(_tokens_by_query, grid, grad, q, k, v, o, log_sum, dq, inner, *rest, **c)
    launch(_tokens_by_key, grid, grad, q, k, v, log_sum, inner, dk, dv, *rest, skip, **c)


def _backward_wide(grad, q, k, v, outputs, scale, w, skip) -> None:
    a, g = _weights(q, k, scale, w), _as_tokens(grad, w)
    da = g @ _as_tokens(v, w).transpose(1, 2)
    ds = a * (da - (a * da).sum(-1, keepdim=True)) / scale
    dv = a.transpose(1, 2) @ g + (g if skip else 0)
    found = (ds @ _as_tokens(k, w), ds.transpose(1, 2) @ _as_tokens(q, w), dv)
    for out, t in zip(outputs, found, strict=True):
        out.copy_(t.reshape(out.shape))


def outer_attention(q, k, v, temperature=1.0, token_dim=1) -> Tensor:
    """The op on a GPU; no scratch."""
    check_attention("outer_attention", q, k, v, temperature, token_dim)
    return forward(q, k, v, temperature, token_dim, False)


def outer_attention_backward(grad, q, k, v, temperature=1.0, token_dim=1) -> tuple[Tensor, ...]:
    """Gradients for q, k and v; scratch: two (B, r), float32 or float64."""
    op = "outer_attention_backward"
    check_attention(op, q, k, v, temperature, token_dim)
    check_grad(op, grad, q)
    found = tuple(torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    backward((grad, q, k, v), found, temperature, token_dim, False)
    return found
