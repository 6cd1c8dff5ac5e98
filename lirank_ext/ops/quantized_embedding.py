"""Look-ups in row-wise quantized tables, which read the packed rows as they are.

Source: LiRank (arXiv 2402.06859), embedding table quantization.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_output_dtype, free_size, result_dtype
from ..library.op import op
from .bags import Bags, check_offsets, pool
from .quantized_embedding_backward import (
    check_bag,
    check_tables,
    ids_of_table,
    quantized_embedding_bag_backward,
    quantized_embedding_bags_backward,
    read_tables,
)
from .quantized_embedding_layout import look_up

# ---- one table ---------------------------------------------------------------------------


@op
def quantized_embedding_bag(
    packed: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    dim: int,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.nn.functional.embedding_bag`` on a packed table, summed in float32.

    ``offsets=None`` with (len,) indices is a plain look-up, with (B, L) indices bags of L.
    An empty bag gives zeros. Sums do not depend on the number of threads.

    Args:
        packed: uint8 (N, row_bytes) from :func:`pack_rows`, contiguous. The CPU copies a strided
            table in every call; CUDA kernels refuse one, and one that does not start on 8 bytes.
        indices: int32 or int64 (len,), or (B, L) without offsets.
        offsets: int32 or int64 (B,), or (B + 1,) with ``include_last_offset``; or None.
        dim: width D of the table.
        bits: 8 or 4.
        mode: "sum" or "mean".
        per_sample_weights: floating, shape of ``indices``, mode "sum" only; differentiable.
        include_last_offset: ``offsets`` ends with the end of the last bag.
        output_dtype: floating dtype of the result; None is float32.

    Returns:
        (B, D) of ``output_dtype``.

    Raises:
        IndexError: an index outside [0, N); table, position, index and N are named.
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or the table do not fit.

    Examples:
        >>> packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.eye(4)))
        >>> ids, offsets = torch.tensor([0, 1, 3]), torch.tensor([0, 2])  # two bags: (0, 1) and (3)
        >>> lirank_ext.quantized_embedding_bag(packed, ids, offsets, dim=4).round(decimals=4) + 0.0
        tensor([[1., 1., 0., 0.],
                [0., 0., 0., 1.]])
    """
    bags = Bags(indices, offsets, include_last_offset)
    check_offsets("quantized_embedding_bag", bags, "indices")
    rows_of = torch.full((indices.numel(),), packed.shape[0], device=indices.device)
    _check_indices("quantized_embedding_bag", bags, rows_of, torch.zeros_like(rows_of))
    bag = bags.of_each_id()
    pooled = bag >= 0
    rows = look_up(packed, indices.reshape(-1)[pooled], dim, bits)
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)[pooled]
    return pool(rows, bag[pooled], bags.count(), mode, weights).to(output_dtype or torch.float32)


@quantized_embedding_bag.check
def _(a) -> None:
    check_bag(a)
    check_output_dtype(a)


@quantized_embedding_bag.fake
def _(a):
    return a.packed.new_empty((Bags.of(a).size_of_result(), a.dim), dtype=result_dtype(a))


@quantized_embedding_bag.backward(saves=("packed", "indices", "offsets"))
def _(a, grad):
    table = (a.packed, a.indices, a.offsets, a.dim, a.bits, a.include_last_offset)
    return {"per_sample_weights": quantized_embedding_bag_backward(grad, *table)}


def _check_indices(op: str, bags: Bags, rows_of: Tensor, table_of: Tensor) -> None:
    """Every pooled id is a row; ids behind the last bag are not pooled.

    ``rows_of`` and ``table_of`` map the position of an id to its table's rows and number.
    """
    used = int(bags.offsets[-1]) if bags.include_last else bags.ids.numel()
    used = used if bags.count() else 0
    flat = bags.ids.reshape(-1)[:used].long()
    bad = ((flat < 0) | (flat >= rows_of[:used])).nonzero()
    if bad.numel():
        at = int(bad[0])
        table, rows = int(table_of[at]), int(rows_of[at])
        raise IndexError(
            f"lirank::{op}: indices[{at}] = {int(flat[at])} is out of range for table {table} "
            f"with {rows} rows"
        )


# ---- many tables -------------------------------------------------------------------------


def concatenate_tables(tables: Sequence[Tensor]) -> Tensor:
    """Packed tables as the one tensor that :func:`quantized_embedding_bags` takes.

    Every table starts on 64 bytes.

    Args:
        tables: uint8 (N_t, row_bytes_t) each.

    Returns:
        uint8 (bytes,).
    """
    flat = [t.reshape(-1) for t in tables]
    return torch.cat([torch.nn.functional.pad(t, (0, -t.numel() % 64)) for t in flat])


@op(name="quantized_embedding_bags")
def _quantized_embedding_bags(
    packed: Tensor,
    rows: Tensor,
    dims: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    total_dim: int = -1,
) -> Tensor:
    """T tables in one call; the results of a bag stand side by side.

    Args:
        packed: uint8 (bytes,): the packed tables end to end (``torch.cat`` of the flattened ones)
            or each starting on 64 bytes (:func:`concatenate_tables`); or the sequence of packed
            tables, which is concatenated, a copy, in every call. Contiguous, as for
            :func:`quantized_embedding_bag`.
        rows: int64 (T,) rows of each table.
        dims: int64 (T,) width of each table.
        indices: int32 or int64 (len,), those of all tables, table-major.
        offsets: int32 or int64 (T * B + 1,); table t, bag b at ``t * B + b``.
        bits, mode, per_sample_weights, output_dtype: as :func:`quantized_embedding_bag`.
        total_dim: sum of ``dims`` where known (a compiled graph then has a static shape).

    Returns:
        (B, sum(dims)) of ``output_dtype``.

    Raises:
        IndexError: an index out of range; table, position, index and rows are named.
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or tables do not fit.
    """
    op, bags = "quantized_embedding_bags", Bags(indices, offsets, True)
    tables = read_tables(op, packed, rows, dims, bits)
    width = sum(d for _, d in tables)
    fits = total_dim == width or total_dim < 0
    check(fits, op, "total_dim", f"the sum of dims {width}", total_dim)
    check_offsets(op, bags, "indices")
    bag, each = bags.of_each_id(), bags.count() // len(tables)
    table_of = (bag // max(1, each)).clamp(0, len(tables) - 1)
    _check_indices(op, bags, rows.to(indices.device)[table_of], table_of)
    parts = []
    for t, (table, dim) in enumerate(tables):
        mine = ids_of_table(bag, t, each)
        found = look_up(table, indices[mine], dim, bits)
        weights = None if per_sample_weights is None else per_sample_weights[mine]
        parts.append(pool(found, bag[mine] - t * each, each, mode, weights))
    return torch.cat(parts, 1).to(output_dtype or torch.float32)


@functools.wraps(_quantized_embedding_bags)
def quantized_embedding_bags(packed: Tensor | Sequence[Tensor], *args: Any, **named: Any) -> Tensor:
    if not isinstance(packed, Tensor):
        packed = concatenate_tables(packed)
    return _quantized_embedding_bags(packed, *args, **named)


@_quantized_embedding_bags.check
def _(a) -> None:
    check_tables(a)
    check_output_dtype(a)


@_quantized_embedding_bags.fake
def _(a):
    width = a.total_dim
    if width < 0:  # the widths are data: a size that only the run knows
        width = torch.library.get_ctx().new_dynamic_size()
    bags = Bags.of(a).count() // a.rows.shape[0]
    return a.packed.new_empty((free_size(bags), width), dtype=result_dtype(a))


@_quantized_embedding_bags.backward(saves=("packed", "rows", "dims", "indices", "offsets"))
def _(a, grad):
    tables = (a.packed, a.rows, a.dims, a.indices, a.offsets, a.bits)
    return {"per_sample_weights": quantized_embedding_bags_backward(grad, *tables)}
