"""Attention among tokens of several components each, on GPUs; forward and backward.

The usual tiled attention with a running maximum, one sample and QUERIES tokens a program, the
width padded to 16 for the tensor cores. Tokens wider than 128: at most r / 128 of them, plain
batched products.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_attention_parts import LOG2E, strides
from .launch import cdiv, compute_type, dot, launch, next_power_of_2, wide

WIDEST = 128  # tokens of more components are few: their scores are plain batched products


@triton.jit
def _tokens(t, token, width, h, w, COMPUTE: tl.constexpr):
    """(tokens, width) of the sample that starts at t; zeros outside."""
    inside = (token < h)[:, None] & (width < w)[None, :]
    return tl.load(t + token[:, None] * w + width[None, :], mask=inside, other=0).to(COMPUTE)


@triton.jit
def _keep_tokens(t, value, token, width, h, w):
    inside = (token < h)[:, None] & (width < w)[None, :]
    at = t + token[:, None] * w + width[None, :]
    tl.store(at, value.to(t.dtype.element_ty), mask=inside)


@triton.jit
def _scores(query, keys, token, h, PRECISION: tl.constexpr):
    """In powers of two; -inf behind the last key."""
    zero = tl.zeros((query.shape[0], keys.shape[0]), query.dtype)
    s = dot(query, tl.trans(keys), zero, PRECISION)
    return tl.where((token < h)[None, :], s, -float("inf"))


@triton.jit(do_not_specialize=["n"])
def _attend_tokens(
    q, k, v, out, log_sum, n, h, w, q_row, k_row, v_row, scale: tl.float64,
    SKIP: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The output, and where wanted log2 of each row's sum of exponentials."""
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    q, k, v = q + row * q_row, k + row * k_row, v + row * v_row
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _tokens(q, i, width, h, w, COMPUTE) * tl.full((), scale, COMPUTE)
    largest = tl.full((QUERIES,), -float("inf"), COMPUTE)
    total, o = tl.zeros((QUERIES,), COMPUTE), tl.zeros((QUERIES, WIDTH), COMPUTE)
    for start in range(0, h, KEYS):
        j = start + tl.arange(0, KEYS)
        keys = _tokens(k, j, width, h, w, COMPUTE)
        s = _scores(query, keys, j, h, PRECISION)
        larger = tl.maximum(largest, tl.max(s, 1))
        shrink, e = tl.exp2(largest - larger), tl.exp2(s - larger[:, None])
        total = total * shrink + tl.sum(e, 1)
        values = _tokens(v, j, width, h, w, COMPUTE)
        o = dot(e, values, o * shrink[:, None], PRECISION)
        largest = larger
    o = o / total[:, None]
    if SKIP:
        o += _tokens(v, i, width, h, w, COMPUTE)
    _keep_tokens(out + row * (h * w), o, i, width, h, w)
    if log_sum is not None:
        tl.store(log_sum + row * h + i, largest + tl.log2(total), mask=i < h)


@triton.jit(do_not_specialize=["n"])
def _tokens_by_query(
    grad, q, k, v, o, log_sum, dq, inner, n, h, w, grad_row, q_row, k_row, v_row, d_row,
    scale: tl.float64, step: tl.float64,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """dq, and <grad, output> of every query."""
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    grad, q, k, v = grad + row * grad_row, q + row * q_row, k + row * k_row, v + row * v_row
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query = _tokens(q, i, width, h, w, COMPUTE) * tl.full((), scale, COMPUTE)
    g = _tokens(grad, i, width, h, w, COMPUTE)
    mean = tl.sum(g * _tokens(o + row * (h * w), i, width, h, w, COMPUTE), 1)
    log_total = tl.load(log_sum + row * h + i, mask=i < h, other=0)
    found = tl.zeros((QUERIES, WIDTH), COMPUTE)
    for start in range(0, h, KEYS):
        j = start + tl.arange(0, KEYS)
        keys = _tokens(k, j, width, h, w, COMPUTE)
        values = _tokens(v, j, width, h, w, COMPUTE)
        e = tl.exp2(_scores(query, keys, j, h, PRECISION) - log_total[:, None])
        da = dot(g, tl.trans(values), tl.zeros((QUERIES, KEYS), COMPUTE), PRECISION)
        found = dot(e * (da - mean[:, None]), keys, found, PRECISION)
    _keep_tokens(dq + row * d_row, found * tl.full((), step, COMPUTE), i, width, h, w)
    tl.store(inner + row * h + i, mean, mask=i < h)


@triton.jit(do_not_specialize=["n"])
def _tokens_by_key(
    grad, q, k, v, log_sum, inner, dk, dv, n, h, w, grad_row, q_row, k_row, v_row, d_row,
    scale: tl.float64, step: tl.float64,
    SKIP: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row, width = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    grad, q, k, v = grad + row * grad_row, q + row * q_row, k + row * k_row, v + row * v_row
    j = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    keys = _tokens(k, j, width, h, w, COMPUTE)
    values = _tokens(v, j, width, h, w, COMPUTE)
    key_total, value_total = tl.zeros((KEYS, WIDTH), COMPUTE), tl.zeros((KEYS, WIDTH), COMPUTE)
    for start in range(0, h, QUERIES):
        i = start + tl.arange(0, QUERIES)
        raw = _tokens(q, i, width, h, w, COMPUTE)
        g = _tokens(grad, i, width, h, w, COMPUTE)
        log_total = tl.load(log_sum + row * h + i, mask=i < h, other=float("inf"))
        mean = tl.load(inner + row * h + i, mask=i < h, other=0)
        query = raw * tl.full((), scale, COMPUTE)
        e = tl.exp2(_scores(query, keys, j, h, PRECISION) - log_total[:, None])
        value_total = dot(tl.trans(e), g, value_total, PRECISION)
        da = dot(g, tl.trans(values), tl.zeros((QUERIES, KEYS), COMPUTE), PRECISION)
        key_total = dot(tl.trans(e * (da - mean[:, None])), raw, key_total, PRECISION)
    if SKIP:
        value_total += _tokens(grad, j, width, h, w, COMPUTE)
    _keep_tokens(dk + row * d_row, key_total * tl.full((), step, COMPUTE), j, width, h, w)
    _keep_tokens(dv + row * d_row, value_total, j, width, h, w)


# ---- launchers ---------------------------------------------------------------------------


def _token_tiles(t: Tensor, h: int, w: int) -> dict:
    """One configuration: 16 or 32 tokens a side. Products of float32 take three tf32 passes."""
    side = 32 if h > 16 and w <= 64 and t.dtype != torch.float64 else 16
    constants = {"PRECISION": "ieee" if t.dtype == torch.float64 else "tf32x3"}
    constants |= {"COMPUTE": compute_type(t), "WIDTH": max(16, next_power_of_2(w))}
    return constants | {"QUERIES": side, "KEYS": side, "num_warps": 4}


def forward(q, k, v, out, log_sum, temperature, w, skip) -> Tensor:
    (n, r), scale = q.shape, temperature * math.sqrt(w)
    h = r // w
    if w > WIDEST:
        found = _weights(q, k, scale, w) @ _as_tokens(v, w)
        return out.copy_(found.reshape(n, r) + (v if skip else 0))
    c = _token_tiles(q, h, w)
    grid = (n, cdiv(h, c["QUERIES"]))
    args = (q, k, v, out, log_sum, n, h, w, *strides(q, k, v), LOG2E / scale, skip)
    launch(_attend_tokens, grid, *args, **c)
    return out


def _as_tokens(t: Tensor, w: int) -> Tensor:
    return t.to(wide(t)).reshape(t.shape[0], -1, w)


def _weights(q: Tensor, k: Tensor, scale: float, w: int) -> Tensor:
    return torch.softmax(_as_tokens(q, w) @ _as_tokens(k, w).transpose(1, 2) / scale, -1)


def backward(grad, q, k, v, outputs, temperature, w, skip) -> None:
    (n, r), (dq, dk, dv), scale = q.shape, outputs, temperature * math.sqrt(w)
    h = r // w
    if w > WIDEST or h == 1:  # one token: its gradients of q and k are exactly 0
        return _backwardwide(grad, q, k, v, outputs, scale, w, skip)
    kind = {"dtype": wide(q), "device": q.device}
    o = torch.empty((n, r), **kind)
    log_sum, inner = (torch.empty((n, h), **kind) for _ in range(2))
    forward(q, k, v, o, log_sum, temperature, w, False)
    c = _token_tiles(q, h, w)
    rest = (n, h, w, *strides(grad, q, k, v), dq.stride(0), LOG2E / scale, 1 / scale)
    grid = (n, cdiv(h, c["QUERIES"]))
    launch(_tokens_by_query, grid, grad, q, k, v, o, log_sum, dq, inner, *rest, **c)
    launch(_tokens_by_key, grid, grad, q, k, v, log_sum, inner, dk, dv, *rest, skip, **c)


def _backwardwide(grad, q, k, v, outputs, scale, w, skip) -> None:
    a, g = _weights(q, k, scale, w), _as_tokens(grad, w)
    da = g @ _as_tokens(v, w).transpose(1, 2)
    ds = a * (da - (a * da).sum(-1, keepdim=True)) / scale
    dv = a.transpose(1, 2) @ g + (g if skip else 0)
    found = (ds @ _as_tokens(k, w), ds.transpose(1, 2) @ _as_tokens(q, w), dv)
    for out, t in zip(outputs, found, strict=True):
        out.copy_(t.reshape(out.shape))
