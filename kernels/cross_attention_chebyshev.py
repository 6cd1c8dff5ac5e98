"""Attention at Chebyshev nodes: which samples it serves, and the pieces of its two directions.

With tokens of width 1 a query's result depends on the query alone: with s = q_i / temperature,
  o(s) = N(s) / D(s),  D(s) = sum_j exp(s k_j),  N(s) = sum_j exp(s k_j) v_j.
N and D are computed at NODES queries and interpolated at the r others: NODES * r exponentials
instead of r * r, and three multiply-adds a query and node. ``csrc/simd/cross_chebyshev_bound.h``
holds the mathematics and derives the bound. It is the same here, with one difference: the number of
nodes is fixed, and a sample for which the bound asks for more is summed exactly. So is one whose
numbers are not finite, or whose D ranges over more than MOST_RANGE at the nodes. A program has one
sample, so that its choice is one branch for all its threads.

All exponents are of 2.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from .cross_attention_parts import value_of
from .launch import next_power_of_2

NODES = 32  # queries and keys of standard deviation 1 take 22 at r=64, 26 at r=256
SMALLEST = 128  # the least rank for which nodes are tried
LARGEST = 1024

MOST_SPREAD, MOST_RANGE = tl.constexpr(7.2), tl.constexpr(4.0)
MOST_EXPONENT = tl.constexpr(40.0)  # half the queries' range times the keys'
LEAST_WEIGHT = tl.constexpr(-80.0)
ELLIPSES = tl.constexpr(8)


@cache
def table(device: torch.device) -> torch.Tensor:
    """The nodes, and the matrix from values at the nodes to coefficients, row by node."""
    p = torch.arange(NODES, dtype=torch.float64)
    angle = torch.pi * (p + 0.5) / NODES
    matrix = torch.cos(angle[:, None] * p) * 2 / NODES
    matrix[:, 0] /= 2
    both = torch.cat([torch.cos(angle), matrix.flatten()]).float()
    return both.to(device)


@triton.jit
def _nodes_for(up, down, low, high):
    """The nodes that the bound asks for; more than any where rounding would grow too much."""
    curved, b = (up + down) / 2, (up - down) / 2
    right = tl.where(high > 0, 1 - up / high, 0.0)
    left = tl.where(low > 0, 1 - down / low, 0.0)
    least = tl.minimum(-right * (b + curved * right), left * (b - curved * left))
    least = tl.minimum(least, 0.0)
    rho = tl.exp2(0.75 + 0.35 * tl.arange(0, ELLIPSES).to(tl.float32))  # 1.7 to 9.2
    a, h = (rho + 1 / rho) / 2, (rho - 1 / rho) / 2
    aa, hh = a * a, h * h
    curve = curved * (aa + hh) / aa + 1e-20
    highest = curved * 0.25 * aa / (aa + hh)
    x = tl.maximum(1.0, tl.minimum(a, (high - b) / (2 * curve)))
    highest = tl.maximum(highest, (x - 1) * high + up - x * b - curve * x * x)
    x = tl.maximum(1.0, tl.minimum(a, (low + b) / (2 * curve)))
    highest = tl.maximum(highest, (x - 1) * low + down + x * b - curve * x * x)
    bits = 26.01 - least + tl.log2(4 / (rho - 1)) + curved * hh + highest
    fewest = tl.min(bits / tl.log2(rho) + 1, 0)
    return tl.where(curved / 4 - least <= MOST_SPREAD, fewest, 1e9)


@triton.jit
def keys_of(sample, k, v, j, r, MASKED: tl.constexpr):
    """Keys from their mean, log2 of their weights at the middle query, and values from theirs."""
    at_middle, top, from_top, mean = sample
    key = value_of(k, j, r, tl.float32, MASKED) - top
    weight = tl.maximum(at_middle * key, LEAST_WEIGHT)
    if MASKED:
        weight = tl.where(j < r, weight, -float("inf"))
    value = value_of(v, j, r, tl.float32, MASKED) - mean
    return key - from_top, weight, value


@triton.jit
def terms_of(sample, steep, k, v, start, r, SHORT: tl.constexpr, MASKED: tl.constexpr):
    """(keys, nodes): the terms of D at the nodes for SHORT keys; the keys and their values."""
    key, weight, value = keys_of(sample, k, v, start + tl.arange(0, SHORT), r, MASKED)
    return tl.exp2(weight[:, None] + key[:, None] * steep[None, :]), key, value


@triton.jit
def sample_of(k, v, r, queries, keys, scale, NODES: tl.constexpr, SPAN: tl.constexpr):
    """How one sample is interpolated, and whether: the bound's answer, before any node."""
    half = (queries[1] - queries[0]) / 2
    middle = queries[0] + half
    at_middle, spread = middle * scale, half * scale
    top = tl.where(at_middle > 0, keys[1], keys[0])
    total, of_key = tl.zeros((SPAN,), tl.float32), tl.zeros((SPAN,), tl.float32)
    of_value = tl.zeros((SPAN,), tl.float32)
    for start in range(0, r, SPAN):
        j = start + tl.arange(0, SPAN)
        key, weight, value = keys_of((at_middle, top, 0.0, 0.0), k, v, j, r, True)
        w = tl.exp2(weight)
        total += w
        of_key += w * key
        of_value += w * value
    share = 1 / tl.sum(total, 0)
    sample = (at_middle, top, tl.sum(of_key, 0) * share, tl.sum(of_value, 0) * share)
    up, down = tl.zeros((SPAN,), tl.float32), tl.zeros((SPAN,), tl.float32)
    for start in range(0, r, SPAN):
        j = start + tl.arange(0, SPAN)
        key, weight, value = keys_of(sample, k, v, j, r, True)
        up += tl.exp2(weight + key * spread)
        down += tl.exp2(weight - key * spread)
    above = tl.maximum(tl.log2(tl.sum(up, 0) * share), 0.0)
    below = tl.maximum(tl.log2(tl.sum(down, 0) * share), 0.0)
    low, high = keys[0] - top - sample[2], keys[1] - top - sample[2]
    wanted = _nodes_for(above, below, -low * spread, high * spread)
    good = (spread * (keys[1] - keys[0]) <= MOST_EXPONENT) & (wanted <= NODES)
    inverse = tl.where(half > 1e-30, 1 / half, 0.0)
    return (
        sample,
        (middle, inverse, spread),
        (share, (above - below) / 2, (above + below) / 2),
        good,
    )


@triton.jit
def factor_of(x, shape):
    """exp(-b x - A x^2) / D(0): what makes D nearly constant over the nodes."""
    share, b, curved = shape
    return tl.exp2(-(b + curved * x) * x) * share


@triton.jit
def is_finite(t):
    """By comparison: t - t, where t is a product, is its rounding once it is fused, not 0."""
    return tl.sum(tl.where(tl.abs(t) < float("inf"), 0, 1), 0) == 0


@triton.jit
def is_level(d):
    """Whether D's range at the nodes is small; not where a number is not finite."""
    return is_finite(d) & (tl.max(d, 0) <= MOST_RANGE * tl.min(d, 0))


@triton.jit
def matrix_of(table, NODES: tl.constexpr):
    """From values at the nodes to coefficients."""
    node = tl.arange(0, NODES)
    return tl.load(table + NODES + node[:, None] * NODES + node[None, :])


@triton.jit
def coefficients(values, matrix):
    """Of the polynomial through values at the nodes."""
    return tl.sum(values[:, None] * matrix, 0)


@triton.jit
def one_of(c, number):
    """Coefficient ``number``, in every place: a shuffle."""
    return tl.gather(c, tl.full((1,), number, tl.int32), 0)[None, :]


@triton.jit
def line_of(c, at):
    """The first two terms of the polynomial."""
    return one_of(c, 0) + one_of(c, 1) * at


@triton.jit
def queries_at(q, part, places, r, ROWS: tl.constexpr, NODES: tl.constexpr):
    """ROWS x NODES queries: which they are, and where they lie between -1 and 1."""
    i = (part * ROWS + tl.arange(0, ROWS))[:, None] * NODES + tl.arange(0, NODES)[None, :]
    return i, (value_of(q, i, r, tl.float32) - places[0]) * places[1]


def node_tiles(t: torch.Tensor, r: int, backward: bool = False) -> tuple[dict, ...]:
    """A warp a sample needs no barrier; four take a small batch sooner.

    With 16 keys at once the forward takes 96 registers a thread instead of 168, and more programs
    fit. The backward with 32 and one warp takes 255, and spills 16 bytes on sm_100.
    """
    if t.dtype == torch.float64 or not SMALLEST <= r <= LARGEST:
        return ()
    span = max(NODES, next_power_of_2(r))
    rows = min(8, span // NODES)
    return tuple(
        {"NODES": NODES, "SHORT": s, "EVEN": r % s == 0, "SPAN": span, "ROWS": rows, "num_warps": w}
        for s, w in ((32, 1), (16, 1), (32, 4))[backward:]
    )
