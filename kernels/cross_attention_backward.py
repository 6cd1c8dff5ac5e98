"""Backward of attention among the components of one sample's vectors, on GPUs.

Two kernels, each exponential once in each: by query for dq (the sums of e, e v, e k, e v k;
dq = grad * covariance of v and k), leaving 1 / sum and the output; by key for dk and dv. In both
the loop's side of a tile lies along the lanes, one component a thread, and the sums over it stay
apart until the loop is done.

Bytes: 7 B r items, and 4 B r of float32 for what the first kernel leaves. Floor: twice the
exponentials of the forward (``cross_attention``).

Dropped: keeping the (r, r) exponentials in registers for one kernel (256 registers a thread at
r=128); queries down the registers of the second kernel (a load a query and quantity: 64 a tile).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cross_attention_parts import keep, nearest_key, range_of, value_of
from .launch import cdiv, compute_type, launch


@triton.jit
def _add_keys(sums, k, v, start, r, query, nearest, SHORT: tl.constexpr, MASKED: tl.constexpr):
    """The sums of e, e v, e k and e v k with SHORT more keys, k from the nearest key."""
    total, by_value, by_key, by_both = sums
    j = start + tl.arange(0, SHORT)
    key = value_of(k, j, r, query.dtype, MASKED)
    value = value_of(v, j, r, query.dtype, MASKED)[None, :]
    away = key[None, :] - nearest[:, None]
    e = tl.exp2(query[:, None] * away)
    if MASKED:
        e = tl.where((j < r)[None, :], e, 0.0)
    keyed = e * away
    return total + e, by_value + e * value, by_key + keyed, by_both + keyed * value


@triton.jit
def by_query(inputs, dq, kept, i, r, scales, keys, SHORT: tl.constexpr, EVEN: tl.constexpr):
    """dq of the queries i; 1 / sum of exponentials and the output are kept for ``by_key``.

    inputs: grad, q, k and v. scales: of exponents of 2, and of gradients. keys: their range.
    """
    COMPUTE: tl.constexpr = keys[0].dtype
    grad, q, k, v = inputs
    query = value_of(q, i, r, COMPUTE) * tl.full((), scales[0], COMPUTE)
    g = value_of(grad, i, r, COMPUTE)
    nearest = nearest_key(query, keys)
    zero = tl.zeros((i.shape[0], SHORT), COMPUTE)
    sums = (zero, zero, zero, zero)
    whole = r // SHORT * SHORT
    for start in range(0, whole, SHORT):
        sums = _add_keys(sums, k, v, start, r, query, nearest, SHORT, False)
    if not EVEN:
        sums = _add_keys(sums, k, v, whole, r, query, nearest, SHORT, True)
    one = 1.0 / tl.sum(sums[0], 1)
    o = tl.sum(sums[1], 1) * one
    covariance = tl.sum(sums[3], 1) * one - o * (tl.sum(sums[2], 1) * one)
    keep(dq, g * tl.full((), scales[1], COMPUTE) * covariance, i, r)
    keep(kept[0], one, i, r)
    keep(kept[1], o, i, r)


@triton.jit(do_not_specialize=["n"])
def _attend_by_query(
    grad, q, k, v, dq, inverse, output, n, r, grad_row, q_row, k_row, v_row, d_row,
    scale: tl.float64, step: tl.float64,
    COMPUTE: tl.constexpr, LONG: tl.constexpr, SHORT: tl.constexpr, EVEN: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    inputs = (grad + row * grad_row, q + row * q_row, k + row * k_row, v + row * v_row)
    kept = (inverse + row * r, output + row * r)
    i = tl.program_id(1) * LONG + tl.arange(0, LONG)
    keys = range_of(inputs[2], r, COMPUTE, SPAN)
    by_query(inputs, dq + row * d_row, kept, i, r, (scale, step), keys, SHORT, EVEN)


@triton.jit
def _add_queries(
    sums, given, start, r, scale, key, value, keys, SHORT: tl.constexpr, MASKED: tl.constexpr
):
    """dk and dv with SHORT more queries, which lie along the lanes; given: grad, q, kept."""
    COMPUTE: tl.constexpr = key.dtype
    grad, q, inverse, output = given
    i = start + tl.arange(0, SHORT)
    raw = value_of(q, i, r, COMPUTE, MASKED)
    share = value_of(grad, i, r, COMPUTE, MASKED)
    share *= value_of(inverse, i, r, COMPUTE, MASKED)
    o = value_of(output, i, r, COMPUTE, MASKED)
    query = raw * tl.full((), scale, COMPUTE)
    nearest = nearest_key(query, keys)
    e = tl.exp2(query[None, :] * (key[:, None] - nearest[None, :])) * share[None, :]
    if MASKED:
        e = tl.where((i < r)[None, :], e, 0.0)
    slope = e * raw[None, :]
    return sums[0] + slope * (value[:, None] - o[None, :]), sums[1] + e


@triton.jit
def by_key(
    inputs,
    outputs,
    kept,
    j,
    r,
    scales,
    keys,
    SKIP: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """dk and dv (``outputs``) of the keys j; the rest as for ``by_query``."""
    COMPUTE: tl.constexpr = keys[0].dtype
    grad, q, k, v = inputs
    given = (grad, q, kept[0], kept[1])
    key, value = value_of(k, j, r, COMPUTE), value_of(v, j, r, COMPUTE)
    zero = tl.zeros((j.shape[0], SHORT), COMPUTE)
    sums = (zero, zero)
    whole = r // SHORT * SHORT
    for start in range(0, whole, SHORT):
        sums = _add_queries(sums, given, start, r, scales[0], key, value, keys, SHORT, False)
    if not EVEN:
        sums = _add_queries(sums, given, whole, r, scales[0], key, value, keys, SHORT, True)
    key_total, value_total = tl.sum(sums[0], 1), tl.sum(sums[1], 1)
    if SKIP:
        value_total += value_of(grad, j, r, COMPUTE)
    keep(outputs[0], key_total * tl.full((), scales[1], COMPUTE), j, r)
    keep(outputs[1], value_total, j, r)


@triton.jit(do_not_specialize=["n"])
def _attend_by_key(
    grad, q, k, v, dk, dv, inverse, output, n, r, grad_row, q_row, k_row, v_row, d_row,
    scale: tl.float64, step: tl.float64,
    SKIP: tl.constexpr, COMPUTE: tl.constexpr, LONG: tl.constexpr, SHORT: tl.constexpr,
    EVEN: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    inputs = (grad + row * grad_row, q + row * q_row, k + row * k_row, v + row * v_row)
    outputs, kept = (dk + row * d_row, dv + row * d_row), (inverse + row * r, output + row * r)
    j = tl.program_id(1) * LONG + tl.arange(0, LONG)
    keys = range_of(inputs[2], r, COMPUTE, SPAN)
    by_key(inputs, outputs, kept, j, r, (scale, step), keys, SKIP, SHORT, EVEN)


def launch_exact(c: dict, tensors, n: int, r: int, lengths, scale, skip: bool) -> None:
    """Both kernels in one configuration; ``tensors`` as they are named here."""
    grad, q, k, v, dq, dk, dv, inverse, output = tensors
    grid, compute = (n, cdiv(r, c["LONG"])), compute_type(q)
    args = (grad, q, k, v, dq, inverse, output, n, r, *lengths, *scale, compute)
    launch(_attend_by_query, grid, *args, **c)
    args = (grad, q, k, v, dk, dv, inverse, output, n, r, *lengths, *scale, skip, compute)
    launch(_attend_by_key, grid, *args, **c)
