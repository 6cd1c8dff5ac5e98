"""Sizes beyond counting and memory that is not there: one sentence, and the process goes on."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import needs_library

import lirank_ext
from lirank_ext.nn import HashedEmbeddingBag

FAR = 1 << 45  # 32 TiB of a byte each


def far(dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """One number seen very often: a tensor that no copy of fits into memory."""
    return torch.zeros(1, dtype=dtype).expand(FAR)


@needs_library
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("murmur_hash", lambda: lirank_ext.murmur_hash(far())),
        ("murmur_hash", lambda: lirank_ext.murmur_hash(far(torch.int32))),
        ("hashed_embedding_bag", lambda: HashedEmbeddingBag(8, 100, 10)(far())),
        (
            "isotonic_calibration",
            lambda: lirank_ext.isotonic_calibration(
                far(torch.float32), torch.ones(4), torch.zeros(()), -1.0, 0.5
            ),
        ),
        (
            "quantize_rows",
            lambda: lirank_ext.quantize_rows(torch.zeros(1, 8).expand(FAR, 8)),
        ),
    ],
)
def test_memory_that_is_not_there_is_told_with_the_op_and_the_shape(name, call):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(f"lirank::{name}: out of memory") and str(FAR) in text
    assert not re.search(r"\.h\b|line \d", text), text  # no place on the machine that built it
    assert torch.equal(
        lirank_ext.murmur_hash(torch.arange(3)), lirank_ext.murmur_hash(torch.arange(3))
    )


@pytest.mark.parametrize("dims", [[2**62] * 4, [2**63 - 1], [2**31], [0], [-1]])
def test_widths_beyond_counting_are_refused(dims):
    """Their sum wraps around 2^64, so a look-up would write anywhere."""
    dims = torch.tensor(dims)
    empty = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="argument 'dim': wanted"):
        lirank_ext.quantized_embedding_bags(
            empty.byte(), torch.zeros_like(dims), dims, empty, torch.zeros(5).long()
        )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [2**63 - 1, 2**62, 2**31])
def test_one_table_of_a_width_beyond_counting_is_refused(dim, bits):
    packed, ids = torch.empty(0, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="argument 'dim': wanted at most"):
        lirank_ext.quantized_embedding_bag(packed, ids, ids, dim, bits)
    with pytest.raises(ValueError, match="argument 'dim': wanted at most"):
        lirank_ext.unpack_rows(packed, dim, bits)


def test_a_result_beyond_counting_is_refused():
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.zeros(1, 64)))
    offsets = torch.zeros(1, dtype=torch.int64).expand(1 << 56)
    with pytest.raises((RuntimeError, MemoryError)):
        lirank_ext.quantized_embedding_bag(packed, offsets[:0], offsets, 64)
