"""Gradients of hashed embedding bags: of the four tables, dense or sparse, and of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, check_floating, shape
from ..library.op import op
from .bags import Bags, check_offsets
from .hashed_embedding_rule import (
    HALF,
    TABLES,
    check_heights,
    check_ids,
    check_rule,
    compute_dtype,
    rows_of,
)

FAMILY = "hashed_embedding"


def sum_of_rows(
    tables: Sequence[Tensor], ids: Tensor, num_buckets: int, seed: int, prehashed: bool
) -> Tensor:
    """The sum of the four rows of each id."""
    rows = rows_of(ids.reshape(-1), num_buckets, tables[1].shape[0], seed, prehashed)
    dtype = compute_dtype(tables[0].dtype)
    return sum(t[row].to(dtype) for t, row in zip(tables, rows, strict=True))


def check_tables(a: Any) -> None:
    first = a.quotient_b
    check_floating(a, "quotient_b")
    for name in TABLES:
        check_dtype(a, name, first.dtype)
        check_dim(a, name, 2)
        check_device(a, name, first.device)
    check(first.shape[1] > 0, a, "quotient_b", "a positive width", shape(first))
    for name in TABLES:
        t = getattr(a, name)
        check(t.shape[1] == first.shape[1], a, name, f"width {first.shape[1]}", shape(t))
    check_heights(a)


# ---- of the tables -----------------------------------------------------------------------


@op(family=FAMILY, internal=True)
def hashed_embedding_bag_backward(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    num_buckets: int,
    num_remainders: int,
    seed: int,
    mode: str,
    include_last_offset: bool,
    prehashed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense gradients of the four tables."""
    bags = Bags(ids, offsets, include_last_offset, mode, per_sample_weights)
    check_offsets("hashed_embedding_bag_backward", bags, "ids")
    each = gradients_of_ids(grad, bags)
    rows = rows_of(ids.reshape(-1), num_buckets, num_remainders, seed, prehashed)
    heights = (-(-num_buckets // num_remainders), num_remainders) * 2
    return tuple(
        each.new_zeros(height, each.shape[1]).index_add(0, row, each).to(grad.dtype)
        for height, row in zip(heights, rows, strict=True)
    )


def gradients_of_ids(grad: Tensor, bags: Bags) -> Tensor:
    """(n, D): what each id's sum of four rows receives; zeros behind the last bag."""
    dtype, bag = compute_dtype(grad.dtype), bags.of_each_id()
    share = torch.cat([grad.to(dtype), grad.new_zeros(1, grad.shape[1]).to(dtype)])
    if bags.mode == "mean":
        count = torch.bincount(bag[bag >= 0], minlength=grad.shape[0]).clamp(min=1)
        share = share / torch.cat([count, count.new_ones(1)]).unsqueeze(1)
    share = share[bag]
    return share if bags.weights is None else share * bags.weights.reshape(-1, 1).to(dtype)


@hashed_embedding_bag_backward.check
def _check_backward(a: Any) -> None:
    check_rule(a)
    check(0 < a.num_remainders <= HALF, a, "num_remainders", "1 to 2^32 - 1")
    check_floating(a, "grad")
    check_ids(a, a.grad.device)
    check_rows(a)


def check_rows(a: Any) -> None:
    """grad: (B, D)."""
    check_dim(a, "grad", 2)
    count = Bags.of(a).count()
    check(a.grad.shape[0] == count, a, "grad", f"{count} rows", shape(a.grad))


@hashed_embedding_bag_backward.fake
def _(a):
    quotients, dim = -(-a.num_buckets // a.num_remainders), a.grad.shape[1]
    return tuple(a.grad.new_empty((rows, dim)) for rows in (quotients, a.num_remainders) * 2)


@op(family=FAMILY, internal=True)
def hashed_embedding_bag_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    num_buckets: int,
    num_remainders: int,
    seed: int,
    mode: str,
    include_last_offset: bool,
    prehashed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(rows, values) of quotient_b, dense remainder_b; the same for c. Rows rise, each once."""
    bags = Bags(ids, offsets, include_last_offset, mode, per_sample_weights)
    check_offsets("hashed_embedding_bag_backward_sparse", bags, "ids")
    keep = bags.of_each_id() >= 0
    rows = rows_of(ids.reshape(-1)[keep], num_buckets, num_remainders, seed, prehashed)
    each, out = gradients_of_ids(grad, bags)[keep], []
    for quotient, remainder in (rows[:2], rows[2:]):
        unique, place = torch.unique(quotient, return_inverse=True)
        values = each.new_zeros(len(unique), each.shape[1]).index_add(0, place, each)
        dense = each.new_zeros(num_remainders, each.shape[1]).index_add(0, remainder, each)
        out += [unique, values.to(grad.dtype), dense.to(grad.dtype)]
    return tuple(out)


hashed_embedding_bag_backward_sparse.check(_check_backward)


@hashed_embedding_bag_backward_sparse.fake
def _(a):
    dim, out = a.grad.shape[1], []
    for _ in range(2):
        rows = torch.library.get_ctx().new_dynamic_size()
        values = a.grad.new_empty((rows, dim))
        out += [a.ids.new_empty(rows), values, a.grad.new_empty((a.num_remainders, dim))]
    return tuple(out)


# ---- of the weights ----------------------------------------------------------------------


@op(family=FAMILY, internal=True)
def hashed_embedding_bag_backward_weights(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    seed: int,
    include_last_offset: bool,
    prehashed: bool,
) -> Tensor:
    """Gradient of per_sample_weights: <grad of the bag, sum of the four rows>."""
    bags = Bags(ids, offsets, include_last_offset)
    check_offsets("hashed_embedding_bag_backward_weights", bags, "ids")
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    return dot_with_grad(grad, sum_of_rows(tables, ids, num_buckets, seed, prehashed), bags)


def dot_with_grad(grad: Tensor, rows: Tensor, bags: Bags) -> Tensor:
    """<grad of the bag, row> of every id; 0 behind the last bag."""
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])]).to(rows.dtype)
    return (rows * padded[bags.of_each_id()]).sum(1).reshape(bags.ids.shape)


@hashed_embedding_bag_backward_weights.check
def _(a) -> None:
    check_rule(a)
    check_tables(a)
    check_ids(a, a.quotient_b.device)
    check_grad(a, a.quotient_b.shape[1])


def check_grad(a: Any, dim: int) -> None:
    check_floating(a, "grad")
    wanted = (Bags.of(a).count(), dim)
    fits = a.grad.dim() == 2 and a.grad.shape[0] == wanted[0] and a.grad.shape[1] == wanted[1]
    check(fits, a, "grad", f"shape {wanted}")


@hashed_embedding_bag_backward_weights.fake
def _(a):
    return a.ids.new_empty(a.ids.shape, dtype=compute_dtype(a.quotient_b.dtype))
