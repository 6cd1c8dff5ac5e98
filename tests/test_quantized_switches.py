"""Quantized look-ups on both sides of every switch: table size, bags of one id, threads."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_library
from torch.nn.functional import embedding_bag

from lirank_ext import (
    dequantize_rows,
    pack_rows,
    quantize_rows,
    quantized_embedding_bag,
    quantized_embedding_bags,
)

FAR = 1 << 20  # bytes of a table from which rows are prefetched twice (kFarBytes)
CACHED = 1 << 17  # bytes up to which they are not prefetched (kNearBytes)
BLOCK = 64  # bags whose offsets are read at a time (kBlock)
LARGE = 12 << 20  # bytes of a result whose lines are asked for ahead (kLargeResult)


def table(rows, dim, bits=8):
    """A packed table and its dequantized rows."""
    few = [t[torch.arange(rows) % 997] for t in quantize_rows(torch.randn(997, dim), bits)]
    return pack_rows(*few, bits), dequantize_rows(*few)


def check(packed, rows, ids, lengths, bits, mode="sum", weights=None):
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])
    got = quantized_embedding_bag(
        packed, ids, offsets, rows.shape[1], bits, mode, weights, include_last_offset=True
    )
    wide = None if weights is None else weights.double()
    want = embedding_bag(
        ids, rows.double(), offsets, mode=mode, per_sample_weights=wide, include_last_offset=True
    )
    torch.testing.assert_close(got.double(), want, rtol=0, atol=4e-6 * float(want.abs().max() + 1))
    return got


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [16, 30, 64, 200])
@pytest.mark.parametrize("more", [-1, 0, 1, 40])
@pytest.mark.parametrize("size", [CACHED, FAR])
def test_tables_around_the_sizes_of_the_caches(size, dim, bits, more):
    row_bytes = pack_rows(*quantize_rows(torch.randn(1, dim), bits), bits).shape[1]
    packed, rows = table(size // row_bytes + more, dim, bits)
    ids = torch.randint(0, len(rows), (20 * 33,))
    check(packed, rows, ids, [33] * 20, bits)
    check(packed, rows, ids, [1] * len(ids), bits)


PATTERNS = {
    "alone": [1],
    "two": [1, 1],
    "between longer ones": [3, 1, 2, 1, 1, 4, 1, 1, 1, 2, 1],
    "around empty ones": [0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0],
    "first long, then many": [70] + [1] * 90 + [35],
    "last": [2, 2, 1],
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [1, 7, 8, 9, 16, 30, 33, 64, 72, 129, 320])
@pytest.mark.parametrize("lengths", PATTERNS.values(), ids=PATTERNS)
def test_bags_of_one_id_among_others(lengths, dim, bits):
    packed, rows = table(500, dim, bits)
    ids = torch.randint(0, 500, (sum(lengths),))
    for mode in ("sum", "mean"):
        check(packed, rows, ids, lengths, bits, mode)
    check(packed, rows, ids, lengths, bits, weights=torch.randn(len(ids)))


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [16, 30, 64, 256])
def test_a_bag_of_one_id_is_the_row_to_the_bit_in_any_company(dim, bits):
    packed, rows = table(80_000, dim, bits)
    ids = torch.randint(0, len(rows), (200,))
    run = check(packed, rows, ids, [1] * 200, bits)
    assert torch.equal(run, rows[ids])
    mixed = check(packed, rows, torch.cat([ids[:3], ids]), [3, 1] + [1] * 199, bits)
    assert torch.equal(mixed[1:], rows[ids])


@pytest.mark.parametrize("rows", [500, 80_000])  # in cache, and beyond it
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("at", [0, 5, 6, 31, 32, 33, 63, 64, 99])
def test_a_bad_id_is_named_wherever_it_lies_in_the_stream(at, length, rows):
    packed, _ = table(rows, 64)
    ids = torch.randint(0, rows, (100,))
    ids[at] = rows
    with pytest.raises(IndexError, match=rf"indices\[{at}\] = {rows} is out of range"):
        quantized_embedding_bag(packed, ids, torch.arange(0, 100, length), 64)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("bags", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5])
def test_bags_around_the_blocks_of_offsets(bags, wide):
    kind = torch.int64 if wide else torch.int32
    packed, rows = table(300, 24)
    for lengths in ([2] * bags, [1] * bags, [0] * (bags - 1) + [1], [1, 1, 2] * bags):
        ids = torch.randint(0, 300, (sum(lengths),))
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(kind)
        got = quantized_embedding_bag(packed, ids.to(kind), offsets, 24, include_last_offset=True)
        want = embedding_bag(
            ids, rows.double(), offsets.long(), mode="sum", include_last_offset=True
        )
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
    # Offsets without the last: the last bag ends with the ids.
    ids, starts = torch.randint(0, 300, (bags + 3,)), torch.arange(bags)
    got = quantized_embedding_bag(packed, ids, starts.to(kind), 24)
    want = embedding_bag(ids, rows.double(), starts, mode="sum")
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 200, 256])
@pytest.mark.parametrize("length", [1, 3])
def test_results_around_the_size_from_which_their_lines_are_asked_for(dim, length):
    for more in (-1, 0, 1):
        bags = LARGE // (4 * dim) + more
        for height in (50, 80_000):
            packed, rows = table(height, dim)
            ids = torch.randint(0, height, (bags, length))
            got = quantized_embedding_bag(packed, ids, None, dim)
            want = rows[ids[:, 0]]
            for k in range(1, length):
                want = want + rows[ids[:, k]]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


# Tables of every reach in every order: the check of ids ahead starts and stops between them.
ORDERS = {
    "cached between far": [40_000, 300, 40_000],
    "cached first": [300, 300, 5000, 40_000],
    "cached last": [40_000, 5000, 300],
    "all in turn": [300, 5000, 300, 40_000, 300, 5000, 40_000, 300],
}


@pytest.mark.parametrize("heights", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("bags", [1, 7, 33, 150])
def test_tables_of_every_reach_side_by_side(heights, bags):
    dim, made = 32, []
    for height in heights:
        made.append(table(height, dim))
    packed = torch.cat([p.flatten() for p, _ in made])
    lengths = torch.randint(0, 4, (len(heights) * bags,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    of_table = torch.arange(len(heights)).repeat_interleave(bags).repeat_interleave(lengths)
    tall = torch.tensor(heights)
    ids = (torch.rand(len(of_table)) * tall[of_table]).long()
    wide = [torch.tensor(heights), torch.tensor([dim] * len(heights))]
    got = quantized_embedding_bags(packed, *wide, ids, offsets)
    for t, (_, rows) in enumerate(made):
        own = offsets[t * bags : (t + 1) * bags + 1]
        want = embedding_bag(
            ids[own[0] : own[-1]],
            rows.double(),
            own - own[0],
            mode="sum",
            include_last_offset=True,
        )
        torch.testing.assert_close(
            got[:, t * dim : (t + 1) * dim].double(), want, rtol=0, atol=1e-5
        )
    for at in {0, len(ids) // 3, len(ids) // 2, len(ids) - 1} if len(ids) else ():
        bad = ids.clone()
        bad[at:] = tall[of_table[at:]]  # the first of several is named
        with pytest.raises(IndexError, match=rf"indices\[{at}\] = .* for table {of_table[at]} "):
            quantized_embedding_bags(packed, *wide, bad, offsets)
