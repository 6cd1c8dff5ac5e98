"""Gradients of the four tables of a hashed embedding bag: sums over sorted runs.

``_list_rows`` lists the rows of every id, torch sorts them, and ``hashed_embedding_runs.py`` sums
what falls on one row. The sparse gradients have to wait for the number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import contiguous, findings, shape, spans
from .hashed_embedding import rows_at, rule_of
from .hashed_embedding_runs import LOWEST, sum_runs
from .launch import cdiv, launch, next_power_of_2, wide


@triton.jit(do_not_specialize=["bags", "known", "count", "seed"])
def _list_rows(
    ids, offsets, keys, bag_of, shares, errors, bags, known, count: tl.int64, seed: tl.int64,
    buckets: tl.int64, remainders: tl.int64,
    PREHASHED: tl.constexpr, WHOLE: tl.constexpr, BAGS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Keys of every id that is in a bag in the four tables, its bag, and its share of a mean."""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, bag, bags, known, count, 1)
    rule = (seed, buckets, remainders)
    for start in range(0, tl.max(length, 0), STEPS):
        step = start + tl.arange(0, STEPS)
        valid, place = step[None, :] < length[:, None], begin[:, None] + step[None, :]
        qb, rb, qc, rc = rows_at(ids, place, valid, rule, PREHASHED, WHOLE)
        tl.store(keys + place, (qb - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + count + place, (rb - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + 2 * count + place, (qc - 2147483648).to(tl.int32), mask=valid)
        tl.store(keys + 3 * count + place, (rc - 2147483648).to(tl.int32), mask=valid)
        if bag_of is not None:
            tl.store(bag_of + place, (bag[:, None] + 0 * place).to(tl.int32), mask=valid)
        if shares is not None:
            one = tl.full((BAGS,), 1.0, shares.dtype.element_ty)
            share = one / tl.maximum(length, 1).to(shares.dtype.element_ty)
            tl.store(shares + place, share[:, None] + 0.0 * valid, mask=valid)


# ---- launchers -----------------------------------------------------------------------------


def _list(a: Any, ids: Tensor, offsets: Tensor | None, bags: int, m: int, mean: bool) -> tuple:
    """Keys (4, n) of every id, its bag (None without offsets), its share of a mean or None."""
    n, device = ids.numel(), a.grad.device
    if n >= 1 << 31 or bags >= 1 << 31:
        wanted = "fewer than 2^31 ids and bags in one backward"
        raise ValueError(f"lirank::{type(a).__name__}: argument 'ids': wanted {wanted}, got {n}")
    bag_of, shares = None, None
    if offsets is None:  # the bag of an id follows from its place: n bags of one
        keys = torch.empty((4, n), dtype=torch.int32, device=device)
        bags, known, steps = n, 0, 1
    else:  # ids in no bag keep row 0, and add nothing to it
        keys = torch.full((4, n), LOWEST, dtype=torch.int32, device=device)
        bag_of = torch.full((n,), -1, dtype=torch.int32, device=device)
        known, steps = offsets.shape[0], min(16, next_power_of_2(max(1, n // max(1, bags))))
        if mean:
            shares = torch.empty(n, dtype=wide(a.grad), device=device)
    c = {"BAGS": 256 // steps, "STEPS": steps, "num_warps": 4}
    args = (ids, offsets, keys, bag_of, shares, findings(device), bags, known, n, *rule_of(a, m))
    launch(_list_rows, (cdiv(bags, c["BAGS"]),), *args, **c)
    return keys, bag_of, shares


def sorted_runs(
    a: Any, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, m: int, mean: bool
) -> tuple:
    """What ``sum_runs`` takes in front of ``slots``, and behind ``out``; m: remainder rows."""
    bags, _, _, fixed = shape(a.ids, a.offsets, a.include_last_offset)
    keys, bag_of, shares = _list(a, ids, offsets, bags, m, mean)
    keys, positions = torch.sort(keys, dim=1, stable=True)
    one = 1 / fixed if mean and offsets is None else 1.0
    return (keys, positions, bag_of, weights if shares is None else shares), (fixed, one)


def _zeros(grad: Tensor, heights: tuple[int, ...]) -> list[Tensor]:
    return [grad.new_zeros((height, grad.shape[1])) for height in heights]


def hashed_embedding_bag_backward(a) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense gradients of the four tables.

    Scratch: what torch.sort takes (four times 32-bit keys, 64-bit positions), 20 bytes an id of
    rows and bags, and D / 8 items an id of sums across chunks.
    """
    grad, ids, offsets, weights = contiguous(a.grad, a.ids, a.offsets, a.per_sample_weights)
    out = _zeros(grad, (-(-a.num_buckets // a.num_remainders), a.num_remainders) * 2)
    if ids.numel() and grad.shape[1]:
        mean = a.mode == "mean"
        runs, shares = sorted_runs(a, ids, offsets, weights, a.num_remainders, mean)
        sum_runs(grad, *runs, (None, None), out, *shares)
    return tuple(out)


def hashed_embedding_bag_backward_sparse(a) -> tuple[Tensor, ...]:
    """(rows, values) of quotient_b, dense remainder_b; the same for c.

    How many rows there are is waited for, so this cannot be captured. Scratch: as the dense one,
    and 16 bytes an id of places.
    """
    grad, ids, offsets, weights = contiguous(a.grad, a.ids, a.offsets, a.per_sample_weights)
    if a.include_last_offset:  # ids behind the last bag have no rows in the result
        used = min(max(int(offsets[-1]), 0), ids.numel())
        ids, weights = ids[:used], None if weights is None else weights[:used]
    mean = a.mode == "mean"
    runs, shares = sorted_runs(a, ids, offsets, weights, a.num_remainders, mean)
    keys = runs[0]
    b, slots_b = torch.unique_consecutive(keys[0], return_inverse=True)
    c, slots_c = torch.unique_consecutive(keys[2], return_inverse=True)
    out = _zeros(grad, (b.numel(), a.num_remainders, c.numel(), a.num_remainders))
    if ids.numel() and grad.shape[1]:
        sum_runs(grad, *runs, (slots_b, slots_c), out, *shares)
    return b.long() - LOWEST, out[0], out[1], c.long() - LOWEST, out[2], out[3]
