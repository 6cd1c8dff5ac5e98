"""The step of an optimizer that a backward takes by itself: gradients of hashed tables, applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..library.checks import (
    check,
    check_device,
    check_dtype,
    check_floating,
    refuse,
)
from ..library.op import op
from .bags import Bags, check_offsets
from .hashed_embedding_backward import FAMILY, check_rows, check_tables, gradients_of_ids
from .hashed_embedding_rule import (
    TABLES,
    check_ids,
    check_rule,
    compute_dtype,
    rows_of,
    tables_of,
)

SUMS = tuple(f"sum_{name}" for name in TABLES)
RATES = (torch.float32, torch.float64)


@op(family=FAMILY, internal=True, mutates=(*TABLES, *SUMS))
def hashed_embedding_bag_update(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    sum_quotient_b: Tensor | None,
    sum_remainder_b: Tensor | None,
    sum_quotient_c: Tensor | None,
    sum_remainder_c: Tensor | None,
    lr: Tensor,
    num_buckets: int,
    seed: int,
    mean: bool,
    include_last_offset: bool,
    prehashed: bool,
    l2: float,
    eps: float,
) -> None:
    """Move the rows of the four tables by their gradients, in place, without making these.

    A row w whose gradients sum up to g, of D numbers that are not all 0, moves once::

        g = g + l2 * w
        with sums, row-wise AdaGrad:  s = s + mean(g^2);  w = w - lr * g / (sqrt(s) + eps)
        without, SGD:                 w = w - lr * g

    All is computed in float32, in float64 for float64 tables, and a row of half precision is
    rounded once, to the nearest. Rows do not depend on the number of threads.

    Args:
        grad: (B, D), of each bag, dtype of the tables.
        ids, offsets, per_sample_weights: as in ``hashed_embedding_bag``.
        quotient_b, remainder_b, quotient_c, remainder_c: contiguous tables, moved in place.
        sum_quotient_b, sum_remainder_b, sum_quotient_c, sum_remainder_c: (rows,) contiguous
            float32, or float64 for float64 tables; moved in place. All of them, or None for SGD.
        lr: the learning rate, () float32 or float64, on the device of the tables or on the CPU.
            A CUDA graph reads the first anew in every replay and keeps the second as a constant.
        mean: the bags are means. It is no ``mode``, because PyTorch cannot functionalize an op that
            changes tensors and has an argument of that name.
        l2: strength of the penalty of the rows that move.
        eps: added to the root.
    """
    pooling = "mean" if mean else "sum"
    bags = Bags(ids, offsets, include_last_offset, pooling, per_sample_weights)
    check_offsets("hashed_embedding_bag_update", bags, "ids")
    each = gradients_of_ids(grad, bags)
    rows = rows_of(ids.reshape(-1), num_buckets, remainder_b.shape[0], seed, prehashed)
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    sums = (sum_quotient_b, sum_remainder_b, sum_quotient_c, sum_remainder_c)
    rate = lr.to(each.device, each.dtype)
    for table, total, row in zip(tables, sums, rows, strict=True):
        _move(table, total, row, each, rate, l2, eps)


def _move(
    table: Tensor,
    total: Tensor | None,
    row: Tensor,
    each: Tensor,
    rate: Tensor,
    l2: float,
    eps: float,
) -> None:
    """Move the rows of one table; ``row`` is that of each id, ``each`` its gradient."""
    found, place = torch.unique(row, return_inverse=True)
    g = each.new_zeros(len(found), each.shape[1]).index_add(0, place, each)
    there = g.ne(0).any(1)
    found, g = found[there], g[there]
    weight = table[found].to(g.dtype)
    if l2:
        g = g + l2 * weight
    if total is not None:
        total[found] += g.square().mean(1)
        rate = (rate / (total[found].sqrt() + eps)).unsqueeze(1)
    table[found] = (weight - rate * g).to(table.dtype)


@hashed_embedding_bag_update.check
def _(a) -> None:
    check_rule(a)
    check_tables(a)
    first = a.quotient_b
    for name in TABLES:
        _check_contiguous(a, name)
    _check_sums(a)
    check_ids(a, first.device)
    check_floating(a, "grad")
    check_rows(a)
    check(a.grad.shape[1] == first.shape[1], a, "grad", f"width {first.shape[1]}")
    check_dtype(a, "grad", first.dtype)
    check_device(a, "grad", first.device)
    if a.lr.dtype not in RATES:
        wanted = "wanted torch.float32 or torch.float64"
        refuse(a, "lr", f"{wanted}, got {a.lr.dtype}", TypeError)
    check(a.lr.dim() == 0, a, "lr", "a tensor without dimensions", f"shape {tuple(a.lr.shape)}")
    if a.lr.device.type != "cpu":
        check_device(a, "lr", first.device)


def _check_contiguous(a: Any, name: str) -> None:
    text = "a contiguous tensor, because it is changed in place"
    check(getattr(a, name).is_contiguous(), a, name, text, "a strided one")


def _check_sums(a: Any) -> None:
    given = a.sum_quotient_b is not None
    for name, table in zip(SUMS, tables_of(a), strict=True):
        total = getattr(a, name)
        wanted = "the sums of all four tables or of none"
        check((total is not None) == given, a, name, wanted, "a tensor" if not given else None)
        if total is None:
            continue
        check_dtype(a, name, compute_dtype(table.dtype))
        check_device(a, name, table.device)
        fits = total.dim() == 1 and total.shape[0] == table.shape[0]
        check(fits, a, name, f"shape ({table.shape[0]},)")
        _check_contiguous(a, name)


@hashed_embedding_bag_update.fake
def _(a) -> None:
    return None
