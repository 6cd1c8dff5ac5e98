"""Quantized look-ups on both sides of every switch: table size, bags of one id, threads."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_library
from torch.nn.functional import embedding_bag

from lirank_ext import dequantize_rows, pack_rows, quantize_rows, quantized_embedding_bag

FAR = 1 << 20  # bytes of a table from which rows are prefetched twice (kFarBytes)


def table(rows, dim, bits=8):
    """A packed table and the float rows that it stands for."""
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
def test_tables_around_the_size_of_the_cache(dim, bits, more):
    row_bytes = pack_rows(*quantize_rows(torch.randn(1, dim), bits), bits).shape[1]
    packed, rows = table(FAR // row_bytes + more, dim, bits)
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
