"""Backward of attention at Chebyshev nodes, one sample a program.

``cross_attention_chebyshev.py`` says when there are nodes.

The adjoint of the forward at nodes: a query's gradient goes to N and D, is spread from the queries
onto the nodes, and goes from there to k and v. The gradient of q needs two more functions at the
nodes, N and D with k_j in front. Twice 32 r exponentials, the second time along the keys again:
kept from the first time they would take 256 registers a thread. A sample that the bound refuses
is summed exactly in the same program, its queries before its keys.

Bytes: 7 B r items.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cross_attention_backward import by_key, by_query
from .cross_attention_chebyshev import (
    coefficients,
    factor_of,
    is_finite,
    is_level,
    keys_of,
    line_of,
    matrix_of,
    one_of,
    queries_at,
    sample_of,
    terms_of,
)
from .cross_attention_parts import keep, range_of, value_of


@triton.jit
def _add_functions(sums, sample, steep, k, v, start, r, SHORT: tl.constexpr, MASKED: tl.constexpr):
    """D and N at the nodes, and both with the key in front, with SHORT more keys."""
    e, key, value = terms_of(sample, steep, k, v, start, r, SHORT, MASKED)
    with_key = e * key[:, None]
    return (
        sums[0] + tl.sum(e, 0),
        sums[1] + tl.sum(e * value[:, None], 0),
        sums[2] + tl.sum(with_key, 0),
        sums[3] + tl.sum(with_key * value[:, None], 0),
    )


@triton.jit
def _query_gradients(
    grad,
    q,
    dq,
    table,
    functions,
    places,
    r,
    step,
    NODES: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dq; and the gradients of N and D at the nodes, which are the queries' spread onto them."""
    matrix = matrix_of(table, NODES)
    of_d, of_n = coefficients(functions[0], matrix), coefficients(functions[1], matrix)
    of_k, of_b = coefficients(functions[2], matrix), coefficients(functions[3], matrix)
    to_n, to_d = tl.zeros((NODES,), tl.float32), tl.zeros((NODES,), tl.float32)
    for part in range(0, SPAN // (ROWS * NODES)):
        i, at = queries_at(q, part, places, r, ROWS, NODES)
        at = tl.where(i < r, at, 0.0)
        before, now = tl.full((ROWS, NODES), 1.0, tl.float32), at
        d, n = line_of(of_d, at), line_of(of_n, at)
        with_k, with_both = line_of(of_k, at), line_of(of_b, at)
        for m in range(2, NODES):
            before, now = now, (at + at) * now - before
            d += one_of(of_d, m) * now
            n += one_of(of_n, m) * now
            with_k += one_of(of_k, m) * now
            with_both += one_of(of_b, m) * now
        share = 1.0 / d
        o = n * share
        g = value_of(grad, i, r, tl.float32)
        keep(dq, g * step * (with_both - o * with_k) * share, i, r)
        g_n = g * share
        g_d = -g_n * o
        before, now = at, tl.full((ROWS, NODES), 1.0, tl.float32)
        for m in range(0, NODES):
            line = tl.load(table + NODES + tl.arange(0, NODES) * NODES + m)
            to_n += tl.sum(g_n * now) * line
            to_d += tl.sum(g_d * now) * line
            before, now = now, (at + at) * now - before
    return to_n, to_d


@triton.jit
def _key_gradients(
    inputs, outputs, rows, sample, steep, start, r, SHORT: tl.constexpr, SKIP: tl.constexpr
):
    """dk and dv of SHORT keys: sums over the nodes, which are the rows of a tile."""
    grad, _, k, v = inputs
    j = start + tl.arange(0, SHORT)
    key, weight, value = keys_of(sample, k, v, j, r, True)
    e = tl.exp2(weight[None, :] + steep[:, None] * key[None, :])
    value_total = tl.sum(e * rows[0][:, None], 0)
    key_total = tl.sum(e * rows[1][:, None], 0) * value + tl.sum(e * rows[2][:, None], 0)
    if SKIP:
        value_total += value_of(grad, j, r, tl.float32)
    keep(outputs[0], key_total, j, r)
    keep(outputs[1], value_total, j, r)


@triton.jit(do_not_specialize=["n"])
def attend_nodes_backward(
    grad, q, k, v, dq, dk, dv, inverse, output, table, n, r, grad_row, q_row, k_row, v_row, d_row,
    scale: tl.float64, step: tl.float64,
    SKIP: tl.constexpr, NODES: tl.constexpr, SHORT: tl.constexpr, EVEN: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``inverse`` and ``output``: room for the samples summed exactly."""
    row = tl.program_id(0).to(tl.int64)
    grad, q, k, v = grad + row * grad_row, q + row * q_row, k + row * k_row, v + row * v_row
    dq, inputs = dq + row * d_row, (grad, q, k, v)
    factor, natural = tl.full((), scale, tl.float32), tl.full((), step, tl.float32)
    queries, keys = range_of(q, r, tl.float32, SPAN), range_of(k, r, tl.float32, SPAN)
    sample, places, shape, good = sample_of(k, v, r, queries, keys, factor, NODES, SPAN)
    x = tl.load(table + tl.arange(0, NODES))
    steep, by = x * places[2], factor_of(x, shape)
    zeros = tl.zeros((NODES,), tl.float32)
    functions = (zeros, zeros, zeros, zeros)
    if good:
        sums = functions
        whole = r // SHORT * SHORT
        for start in range(0, whole, SHORT):
            sums = _add_functions(sums, sample, steep, k, v, start, r, SHORT, False)
        if not EVEN:
            sums = _add_functions(sums, sample, steep, k, v, whole, r, SHORT, True)
        d, o, with_key, with_both = sums[0] * by, sums[1] * by, sums[2] * by, sums[3] * by
        functions = (d, o, with_key, with_both)
        good = is_level(d) & is_finite(o) & is_finite(with_key) & is_finite(with_both)
    rows = (zeros, zeros, zeros)
    if good:
        to_n, to_d = _query_gradients(
            grad, q, dq, table, functions, places, r, natural, NODES, SPAN, ROWS
        )
        half = places[2] / factor
        score = (x * half + places[0]) * natural
        to_n, to_d = to_n * by, to_d * by
        rows = (to_n, to_n * score, to_d * score)
        good = is_finite(rows[0]) & is_finite(rows[1]) & is_finite(rows[2])
    outputs = (dk + row * d_row, dv + row * d_row)
    if good:
        for start in range(0, r, SHORT):
            _key_gradients(inputs, outputs, rows, sample, steep, start, r, SHORT, SKIP)
    else:
        scales, kept = (scale, step), (inverse + row * r, output + row * r)
        for start in range(0, r, NODES):
            i = start + tl.arange(0, NODES)
            by_query(inputs, dq, kept, i, r, scales, keys, SHORT, EVEN)
        tl.debug_barrier()  # other threads stored what is loaded next
        for start in range(0, r, NODES):
            j = start + tl.arange(0, NODES)
            by_key(inputs, outputs, kept, j, r, scales, keys, SKIP, SHORT, EVEN)
