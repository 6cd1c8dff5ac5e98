"""Hashed embedding bags over packed tables, for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.checks import check_device, check_output_dtype, result_dtype
from ..library.op import op
from .bags import Bags, check_offsets
from .hashed_embedding_backward import check_grad, dot_with_grad
from .hashed_embedding_rule import TABLES, check_heights, check_ids, check_rule, rows_of, tables_of
from .quantized_embedding_layout import check_packed, look_up

FAMILY = "hashed_embedding"


@op(family=FAMILY)
def quantized_hashed_embedding_bag(
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    dim: int,
    bits: int = 8,
    seed: int = 0,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    prehashed: bool = False,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`hashed_embedding_bag` over packed tables, for serving; summed in float32.

    Args:
        ids, offsets: as :func:`hashed_embedding_bag`.
        quotient_b, quotient_c: uint8 (ceil(num_buckets / m), row_bytes) from ``pack_rows``,
            contiguous, as for :func:`quantized_embedding_bag`.
        remainder_b, remainder_c: uint8 (m, row_bytes).
        num_buckets: 1 to 2^32.
        dim: width D of the tables.
        bits: 8 or 4.
        seed, mode, per_sample_weights, include_last_offset, prehashed: as
            :func:`hashed_embedding_bag`.
        output_dtype: floating dtype of the result; None is float32.

    Returns:
        (B, D) of ``output_dtype``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or table rows do not fit.
    """
    bags = Bags(ids, offsets, include_last_offset, mode, per_sample_weights)
    check_offsets("quantized_hashed_embedding_bag", bags, "ids")
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    rows = _sum_of_rows(tables, ids, (num_buckets, seed, prehashed), dim, bits)
    return bags.pool(rows).to(output_dtype or torch.float32)


def _sum_of_rows(
    tables: Sequence[Tensor], ids: Tensor, rule: tuple[int, int, bool], dim: int, bits: int
) -> Tensor:
    """The sum of the four rows of each id, in float64."""
    num_buckets, seed, prehashed = rule
    rows = rows_of(ids.reshape(-1), num_buckets, tables[1].shape[0], seed, prehashed)
    return sum(look_up(t, row, dim, bits) for t, row in zip(tables, rows, strict=True))


def _check(a: Any) -> None:
    check_rule(a)
    check_packed(a, *TABLES)
    for name in TABLES:
        check_device(a, name, a.quotient_b.device)
    check_heights(a)
    check_ids(a, a.quotient_b.device)


@quantized_hashed_embedding_bag.check
def _(a) -> None:
    _check(a)
    check_output_dtype(a)


@quantized_hashed_embedding_bag.fake
def _(a):
    return a.quotient_b.new_empty((Bags.of(a).size_of_result(), a.dim), dtype=result_dtype(a))


@op(family=FAMILY, internal=True)
def quantized_hashed_embedding_bag_backward(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    dim: int,
    bits: int,
    seed: int,
    include_last_offset: bool,
    prehashed: bool,
) -> Tensor:
    """Gradient of per_sample_weights over packed tables, float32."""
    bags = Bags(ids, offsets, include_last_offset)
    check_offsets("quantized_hashed_embedding_bag_backward", bags, "ids")
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    rows = _sum_of_rows(tables, ids, (num_buckets, seed, prehashed), dim, bits)
    return dot_with_grad(grad, rows, bags).float()


@quantized_hashed_embedding_bag_backward.check
def _(a) -> None:
    _check(a)
    check_grad(a, a.dim)


@quantized_hashed_embedding_bag_backward.fake
def _(a):
    return a.ids.new_empty(a.ids.shape, dtype=torch.float32)


@quantized_hashed_embedding_bag.backward(saves=("ids", "offsets", *TABLES))
def _(a, grad):
    rule = (a.num_buckets, a.dim, a.bits, a.seed, a.include_last_offset, a.prehashed)
    gradient = quantized_hashed_embedding_bag_backward(grad, a.ids, a.offsets, *tables_of(a), *rule)
    return {"per_sample_weights": gradient}
