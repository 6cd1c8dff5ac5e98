"""What must hold for any input: properties of the ops, on examples that hypothesis chooses.

A few hundred examples each; ``LIRANK_EXAMPLES=10000`` for a night (``make properties``).
"""

from __future__ import annotations

import os

import mmh3
import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lirank_ext
from lirank_ext import nn
from lirank_ext.library import load

# The references are slower, and are what the kernels are compared with anyway.
USUAL = 200 if load.extension else 40
EXAMPLES = int(os.environ.get("LIRANK_EXAMPLES", USUAL))
any_input = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= USUAL,  # the suite gives the same result every time
    database=None,
    suppress_health_check=list(HealthCheck),
)
SEEDS = st.integers(0, 2**32 - 1)
BITS = st.sampled_from((8, 4))
MODES = st.sampled_from(("sum", "mean"))
WIDTHS = st.integers(1, 70)
FLOATS = st.floats(-1e6, 1e6, width=32)
IDS = st.integers(-(2**63), 2**63 - 1)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed(seed: int, rows: int, dim: int, bits: int) -> torch.Tensor:
    weight = torch.randn(rows, dim, generator=drawn(seed))
    return lirank_ext.pack_rows(*lirank_ext.quantize_rows(weight, bits), bits)


def looks_up(kind: str, seed: int, dim: int, bits: int):
    """A function (ids, weights, mode) -> one bag, of a table of that kind with 40 rows."""
    if kind == "quantized":
        table = packed(seed, 40, dim, bits)

        def look_up(ids, weights=None, mode="sum"):
            each = None if weights is None else torch.tensor(weights)
            return lirank_ext.quantized_embedding_bag(
                table,
                torch.tensor(ids).long(),
                torch.tensor([0]),
                dim,
                bits=bits,
                per_sample_weights=each,
                mode=mode,
            )[0]

        return look_up
    tables = [torch.randn(n, dim, generator=drawn(seed + i)) for i, n in enumerate((10, 4) * 2)]

    def look_up(ids, weights=None, mode="sum"):
        each = None if weights is None else torch.tensor(weights)
        return lirank_ext.hashed_embedding_bag(
            torch.tensor(ids).long(),
            torch.tensor([0]),
            *tables,
            40,
            per_sample_weights=each,
            mode=mode,
        )[0]

    return look_up


BAGS = st.lists(st.integers(0, 39), max_size=12)
KINDS = pytest.mark.parametrize("kind", ["quantized", "hashed"])


def close(got, wanted, scale=1.0):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5 * scale)


@KINDS
@any_input
@given(seed=SEEDS, dim=WIDTHS, bits=BITS, one=BAGS, two=BAGS)
def test_a_bag_of_both_is_the_sum_of_the_bags(kind, seed, dim, bits, one, two):
    look_up = looks_up(kind, seed, dim, bits)
    close(look_up(one + two), look_up(one) + look_up(two))


@KINDS
@any_input
@given(seed=SEEDS, dim=WIDTHS, bits=BITS, ids=BAGS, mode=MODES, order=st.randoms())
def test_the_order_in_a_bag_does_not_matter(kind, seed, dim, bits, ids, mode, order):
    look_up = looks_up(kind, seed, dim, bits)
    mixed = order.sample(ids, len(ids))
    close(look_up(mixed, mode=mode), look_up(ids, mode=mode))


@KINDS
@any_input
@given(
    seed=SEEDS,
    dim=WIDTHS,
    bits=BITS,
    bag=st.lists(st.tuples(st.integers(0, 39), *[st.floats(-8, 8, width=32)] * 2), max_size=10),
    factor=st.sampled_from((-2.0, 0.0, 0.5, 4.0)),
)
def test_weights_are_linear(kind, seed, dim, bits, bag, factor):
    look_up = looks_up(kind, seed, dim, bits)
    ids, one, two = ([each[i] for each in bag] for i in range(3))
    both = [factor * a + b for a, b in zip(one, two, strict=True)]
    close(look_up(ids, both), factor * look_up(ids, one) + look_up(ids, two), 100)


@any_input
@given(
    row=st.lists(FLOATS, min_size=1, max_size=70),
    bits=BITS,
    magnitude=st.sampled_from((1e-6, 1.0, 1e6)),
)
def test_quantizing_loses_half_a_step_and_then_nothing(row, bits, magnitude):
    weight = torch.tensor([row]) * magnitude
    codes, scale, mid = lirank_ext.quantize_rows(weight, bits)
    back = lirank_ext.dequantize_rows(codes, scale, mid)
    # Rounding of the middle and of the product, beside that to a code.
    rounding = 4 * 2.0**-23 * float(weight.abs().max())
    assert float((back - weight).abs().max()) <= float(scale) / 2 * (1 + 1e-5) + rounding
    again = lirank_ext.dequantize_rows(*lirank_ext.quantize_rows(back, bits))
    torch.testing.assert_close(again, back, rtol=1e-5, atol=rounding)


@any_input
@given(ids=st.lists(IDS, min_size=1, max_size=40), seed=SEEDS)
def test_hashes_are_those_of_mmh3(ids, seed):
    got = lirank_ext.murmur_hash(torch.tensor(ids), seed=seed).tolist()
    wanted = [mmh3.hash64(i.to_bytes(8, "little", signed=True), seed)[0] for i in ids]
    assert got == wanted


@any_input
@given(texts=st.lists(st.text() | st.binary(), min_size=1, max_size=20), seed=SEEDS)
def test_hashes_of_text_are_those_of_mmh3(texts, seed):
    texts = [
        t if isinstance(t, bytes) else t.encode("utf-8", "replace").decode("utf-8") for t in texts
    ]
    got = lirank_ext.hash_strings(texts, seed=seed).tolist()
    wanted = [mmh3.hash64(t if isinstance(t, bytes) else t.encode(), seed)[0] for t in texts]
    assert got == wanted


@any_input
@given(
    seed=SEEDS,
    rows=st.integers(1, 6),
    rank=st.integers(1, 80),
    scale=st.sampled_from((1e-3, 1.0, 8.0)),
    temperature=st.sampled_from((0.1, 1.0, 5.0)),
)
def test_attention_stays_within_its_values(seed, rows, rank, scale, temperature):
    q, k, v = torch.randn(3, rows, rank, generator=drawn(seed)) * scale
    out = lirank_ext.outer_attention(q, k, v, temperature)
    slack = 1e-5 * v.abs().amax(1, keepdim=True) + 1e-30
    assert (out <= v.amax(1, keepdim=True) + slack).all()
    assert (out >= v.amin(1, keepdim=True) - slack).all()


@any_input
@given(
    seed=SEEDS,
    buckets=st.integers(1, 60),
    lower=st.floats(-5, 5, width=32),
    step=st.sampled_from((0.125, 0.5, 2.0)),
    logits=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40),
)
def test_calibration_is_monotone(seed, buckets, lower, step, logits):
    x = torch.tensor(sorted(logits))
    weight = torch.randn(buckets, generator=drawn(seed))
    y = lirank_ext.isotonic_calibration(x, weight, torch.zeros(()), lower, step)
    assert (y.diff() >= -1e-5 * (1 + y.abs().max())).all()


@any_input
@given(seed=SEEDS, rows=st.integers(0, 9), dim=WIDTHS, rank=st.integers(1, 40))
def test_layers_of_zero_are_the_residual(seed, rows, dim, rank):
    """With x0 = 0 a layer gives x to the bit."""
    generator = drawn(seed)
    x = torch.randn(rows, dim, generator=generator)
    v, u = (torch.randn(*s, generator=generator) for s in ((rank, dim), (dim, rank)))
    bias = torch.randn(dim, generator=generator)
    zero = torch.zeros_like(x)
    assert torch.equal(lirank_ext.low_rank_cross(zero, x, v, u, bias), x)
    assert torch.equal(lirank_ext.attention_cross(zero, x, v, v, v, u, bias), x)


@settings(any_input, max_examples=max(EXAMPLES // 8, 5))  # each makes two stacks of layers
@given(
    seed=SEEDS,
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    rank=st.integers(1, 12),
)
def test_scores_of_requests_are_those_of_joined_rows(seed, counts, widths, rank):
    torch.manual_seed(seed)
    net = nn.ResidualCrossNet(sum(widths), 2, rank).eval()
    request, items = torch.randn(len(counts), widths[0]), torch.randn(sum(counts), widths[1])
    each = torch.tensor(counts)
    joined = torch.cat([request.repeat_interleave(each, 0), items], 1)
    with torch.inference_mode():
        got, wanted = net.score(request, items, each), net(joined)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
