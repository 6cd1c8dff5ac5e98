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

from .cross_attention_parts import extremes, value_of
from .launch import (
    cdiv,
    compute_type,
    launch,
)


@triton.jit
def _add_keys(
    sums,
    k,
    v,
    row,
    start,
    k_row,
    v_row,
    r,
    query,
    nearest,
    COMPUTE: tl.constexpr,
    SHORT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The sums of e, e v, e k and e v k with SHORT more keys, k from the nearest key."""
    total, by_value, by_key, by_both = sums
    j = start + tl.arange(0, SHORT)
    key = value_of(k, row, j, k_row, r, COMPUTE, MASKED)
    value = value_of(v, row, j, v_row, r, COMPUTE, MASKED)[None, :]
    away = key[None, :] - nearest[:, None]
    e = tl.exp2(query[:, None] * away)
    if MASKED:
        e = tl.where((j < r)[None, :], e, 0.0)
    keyed = e * away
    return total + e, by_value + e * value, by_key + keyed, by_both + keyed * value


@triton.jit
def by_query(
    grad,
    q,
    k,
    v,
    dq,
    inverse,
    output,
    row,
    i,
    r,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale,
    step,
    high,
    low,
    COMPUTE: tl.constexpr,
    LONG: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """dq of LONG queries; 1 / sum of exponentials and the output, for ``by_key``."""
    query = value_of(q, row, i, q_row, r, COMPUTE) * tl.full((), scale, COMPUTE)
    g = value_of(grad, row, i, grad_row, r, COMPUTE)
    nearest = tl.where(query < 0, low, high)
    zero = tl.zeros((LONG, SHORT), COMPUTE)
    sums = (zero, zero, zero, zero)
    whole = r // SHORT * SHORT
    for start in range(0, whole, SHORT):
        sums = _add_keys(
            sums, k, v, row, start, k_row, v_row, r, query, nearest, COMPUTE, SHORT, False
        )
    if not EVEN:
        sums = _add_keys(
            sums, k, v, row, whole, k_row, v_row, r, query, nearest, COMPUTE, SHORT, True
        )
    one = 1.0 / tl.sum(sums[0], 1)
    o = tl.sum(sums[1], 1) * one
    covariance = tl.sum(sums[3], 1) * one - o * (tl.sum(sums[2], 1) * one)
    found = g * tl.full((), step, COMPUTE) * covariance
    tl.store(dq + row * d_row + i, found.to(dq.dtype.element_ty), mask=i < r)
    tl.store(inverse + row * r + i, one, mask=i < r)
    tl.store(output + row * r + i, o, mask=i < r)


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
    LONG: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * LONG + tl.arange(0, LONG)
    high, low = extremes(k, row, k_row, r, COMPUTE, SPAN)
    by_query(
        grad,
        q,
        k,
        v,
        dq,
        inverse,
        output,
        row,
        i,
        r,
        grad_row,
        q_row,
        k_row,
        v_row,
        d_row,
        scale,
        step,
        high,
        low,
        COMPUTE,
        LONG,
        SHORT,
        EVEN,
    )


@triton.jit
def _add_queries(
    sums,
    grad,
    q,
    inverse,
    output,
    row,
    start,
    grad_row,
    q_row,
    r,
    scale,
    key,
    value,
    high,
    low,
    COMPUTE: tl.constexpr,
    SHORT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """dk and dv with SHORT more queries, which lie along the lanes."""
    key_total, value_total = sums
    i = start + tl.arange(0, SHORT)
    raw = value_of(q, row, i, q_row, r, COMPUTE, MASKED)
    share = value_of(grad, row, i, grad_row, r, COMPUTE, MASKED)
    share *= value_of(inverse, row, i, r, r, COMPUTE, MASKED)
    o = value_of(output, row, i, r, r, COMPUTE, MASKED)
    query = raw * tl.full((), scale, COMPUTE)
    nearest = tl.where(query < 0, low, high)
    e = tl.exp2(query[None, :] * (key[:, None] - nearest[None, :])) * share[None, :]
    if MASKED:
        e = tl.where((i < r)[None, :], e, 0.0)
    slope = e * raw[None, :]
    return key_total + slope * (value[:, None] - o[None, :]), value_total + e


@triton.jit
def by_key(
    grad,
    q,
    k,
    v,
    dk,
    dv,
    inverse,
    output,
    row,
    j,
    r,
    grad_row,
    q_row,
    k_row,
    v_row,
    d_row,
    scale,
    step,
    high,
    low,
    SKIP: tl.constexpr,
    COMPUTE: tl.constexpr,
    LONG: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """dk and dv of LONG keys."""
    key = value_of(k, row, j, k_row, r, COMPUTE)
    value = value_of(v, row, j, v_row, r, COMPUTE)
    zero = tl.zeros((LONG, SHORT), COMPUTE)
    sums = (zero, zero)
    whole = r // SHORT * SHORT
    for start in range(0, whole, SHORT):
        sums = _add_queries(
            sums,
            grad,
            q,
            inverse,
            output,
            row,
            start,
            grad_row,
            q_row,
            r,
            scale,
            key,
            value,
            high,
            low,
            COMPUTE,
            SHORT,
            False,
        )
    if not EVEN:
        sums = _add_queries(
            sums,
            grad,
            q,
            inverse,
            output,
            row,
            whole,
            grad_row,
            q_row,
            r,
            scale,
            key,
            value,
            high,
            low,
            COMPUTE,
            SHORT,
            True,
        )
    key_total, value_total = tl.sum(sums[0], 1), tl.sum(sums[1], 1)
    if SKIP:
        value_total += value_of(grad, row, j, grad_row, r, COMPUTE)
    key_total *= tl.full((), step, COMPUTE)
    tl.store(dk + row * d_row + j, key_total.to(dk.dtype.element_ty), mask=j < r)
    tl.store(dv + row * d_row + j, value_total.to(dv.dtype.element_ty), mask=j < r)


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
    LONG: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * LONG + tl.arange(0, LONG)
    high, low = extremes(k, row, k_row, r, COMPUTE, SPAN)
    by_key(
        grad,
        q,
        k,
        v,
        dk,
        dv,
        inverse,
        output,
        row,
        j,
        r,
        grad_row,
        q_row,
        k_row,
        v_row,
        d_row,
        scale,
        step,
        high,
        low,
        SKIP,
        COMPUTE,
        LONG,
        SHORT,
        EVEN,
    )


def launch_exact(c: dict, tensors, n: int, r: int, lengths, scale, skip: bool) -> None:
    """Both kernels in one configuration; ``tensors`` as they are named here."""
    grad, q, k, v, dq, dk, dv, inverse, output = tensors
    grid, compute = (n, cdiv(r, c["LONG"])), compute_type(q)
    args = (grad, q, k, v, dq, inverse, output, n, r, *lengths, *scale, compute)
    launch(_attend_by_query, grid, *args, **c)
    args = (grad, q, k, v, dk, dv, inverse, output, n, r, *lengths, *scale, skip, compute)
    launch(_attend_by_key, grid, *args, **c)
