"""NaN and infinities: the rule of every op, the same on every backend.

A value that is not finite reaches what is computed from it, and nothing else: all other rows have
the bits that they have without it. docs/reliability.md states the rules that are tested here.
"""

from __future__ import annotations

import math

import pytest
import torch

import lirank_ext
from lirank_ext.library.op import OPS, implementations

VALUES = (math.nan, math.inf, -math.inf)
BATCH, DIM, RANK, ROWS = 5, 21, 6, 12


def spoiled(t: torch.Tensor, *place: int, value: float) -> torch.Tensor:
    t = t.clone()
    t[place] = value
    return t


def layer(op: str) -> dict:
    call = {"x0": torch.randn(BATCH, DIM), "x": torch.randn(BATCH, DIM)}
    names = ("v",) if op == "low_rank_cross" else ("q", "k", "v")
    call |= {name: torch.randn(RANK, DIM) for name in names}
    return call | {"u": torch.randn(DIM, RANK), "bias": torch.randn(DIM)}


def attention(op: str) -> dict:
    return {name: torch.randn(BATCH, DIM) for name in "qkv"}


def calibration(op: str) -> dict:
    logits = torch.tensor([-5.0, -1.5, 0.25, 2.75, 9.0])
    weight, bias = torch.rand(6) + 0.1, torch.zeros(())
    return {"logits": logits, "weight": weight, "bias": bias, "lower": -2.0, "step": 1.0}


def bag(op: str) -> dict:
    """Five bags of two ids, with weights."""
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(ROWS, DIM)))
    call = {"indices": torch.arange(10), "offsets": torch.arange(0, 10, 2), "packed": packed}
    return call | {"dim": DIM, "per_sample_weights": torch.rand(10) + 0.5}


def hashed(op: str) -> dict:
    names = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
    tables = {n: torch.randn(4 if "quotient" in n else 3, DIM) for n in names}
    call = {"ids": torch.arange(10), "offsets": torch.arange(0, 10, 2), "num_buckets": 12}
    return call | tables | {"per_sample_weights": torch.rand(10) + 0.5}


WHOLE, ELEMENT = "whole row", "one element"
# op, arguments, what is spoiled, where, which rows of the result are reached, and how.
RULES = [
    ("low_rank_cross", layer, "x", (2, 3), [2], WHOLE),
    ("low_rank_cross", layer, "x0", (2, 3), [2], ELEMENT),
    ("attention_cross", layer, "x", (2, 3), [2], WHOLE),
    ("attention_cross", layer, "x0", (2, 3), [2], ELEMENT),
    ("outer_attention", attention, "q", (1, 4), [1], ELEMENT),
    ("outer_attention", attention, "k", (1, 4), [1], WHOLE),
    ("outer_attention", attention, "v", (1, 4), [1], WHOLE),
    ("isotonic_calibration", calibration, "logits", (3,), [3], WHOLE),
    # The bucket from 2 to 3: the logits in it and above it.
    ("isotonic_calibration", calibration, "weight", (4,), [3, 4], WHOLE),
    ("quantized_embedding_bag", bag, "per_sample_weights", (5,), [2], WHOLE),
    ("hashed_embedding_bag", hashed, "per_sample_weights", (5,), [2], WHOLE),
]


def results(op: str, call: dict) -> dict[str, torch.Tensor]:
    args = OPS[op].call(**call)
    found = {n: f(*args) for n, f in implementations(op).items() if n in ("reference", "cpu")}
    return {n: out.reshape(out.shape[0], -1) for n, out in found.items()}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("op", "make", "name", "place", "rows", "how"), RULES)
def test_a_value_reaches_its_rows_alone(op, make, name, place, rows, how, value):
    call = make(op)
    before = results(op, call)
    after = results(op, call | {name: spoiled(call[name], *place, value=value)})
    others = [i for i in range(BATCH) if i not in rows]
    for backend, out in after.items():
        assert torch.equal(out[others], before[backend][others]), backend
        finite = out[rows].isfinite()
        if math.isnan(value):
            reached = torch.ones_like(finite)
            if how is ELEMENT:
                reached[:] = False
                reached[:, place[1]] = True
            assert torch.equal(~finite, reached), (backend, out[rows])
        assert torch.equal(finite, after["reference"][rows].isfinite()), (backend, out[rows])


def test_infinite_logits_are_clamped_to_the_ends():
    call = calibration("isotonic_calibration")
    ends = call | {"logits": torch.tensor([-math.inf, math.inf])}
    wanted = call | {"logits": torch.tensor([-2.0, 4.0])}
    for out, want in zip(
        results("isotonic_calibration", ends).values(),
        results("isotonic_calibration", wanted).values(),
        strict=True,
    ):
        assert torch.equal(out, want)


@pytest.mark.parametrize("value", VALUES)
def test_a_row_of_a_table_reaches_the_ids_that_share_it(value):
    call = hashed("hashed_embedding_bag")
    call |= {"ids": torch.arange(12), "offsets": torch.arange(12), "per_sample_weights": None}
    before = results("hashed_embedding_bag", call)
    after = results(
        "hashed_embedding_bag",
        call | {"quotient_b": spoiled(call["quotient_b"], 1, 3, value=value)},
    )
    for backend, out in after.items():
        changed = ~out.isfinite()
        assert changed.any() and not changed[:, [*range(3), *range(4, DIM)]].any()
        assert torch.equal(changed, ~after["reference"].isfinite())
        untouched = ~changed.any(1)
        assert torch.equal(out[untouched], before[backend][untouched])


@pytest.mark.parametrize("value", VALUES)
def test_rows_that_are_not_finite_are_not_quantized(value):
    weight = spoiled(torch.randn(4, DIM), 2, 5, value=value)
    for call in implementations("quantize_rows").values():
        with pytest.raises((ValueError, RuntimeError), match="got row 2 with NaN"):
            call(weight, 8)


def test_hashes_of_float_ids_are_refused():
    """NaN has no row: ids are whole numbers."""
    for call in implementations("murmur_hash").values():
        with pytest.raises((TypeError, RuntimeError), match=r"'ids': wanted torch\.int32 or"):
            call(torch.tensor([math.nan]), 0)
