"""Gradients of the weights of quantized look-ups: <grad of the bag, row> of every id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, check_index_dtype, shape
from ..library.op import op
from .bags import Bags, check_bags
from .quantized_embedding_layout import check_bits, check_packed, check_width, layout, look_up

FAMILY = "quantized_embedding"


# ---- one table ---------------------------------------------------------------------------


def check_bag(a: Any) -> None:
    check_packed(a, "packed")
    check_index_dtype(a, "indices")
    check_bags(a, a.packed.device)


@op(family=FAMILY, internal=True)
def quantized_embedding_bag_backward(
    grad: Tensor,
    packed: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    dim: int,
    bits: int,
    include_last_offset: bool,
) -> Tensor:
    """Gradient of per_sample_weights: <grad of the bag, row>; zeros for ids in no bag."""
    bag = Bags(indices, offsets, include_last_offset).of_each_id()
    pooled = bag >= 0
    rows = look_up(packed, indices.reshape(-1)[pooled], dim, bits)
    out = torch.zeros(indices.numel(), dtype=torch.float64, device=indices.device)
    out[pooled] = (rows * grad.double()[bag[pooled]]).sum(1)
    return out.float().reshape(indices.shape)


@quantized_embedding_bag_backward.check
def _(a) -> None:
    check_bag(a)
    wanted = (Bags.of(a).count(), a.dim)
    fits = a.grad.dim() == 2 and a.grad.shape[0] == wanted[0] and a.grad.shape[1] == wanted[1]
    check(fits, a, "grad", f"shape {wanted}")


@quantized_embedding_bag_backward.fake
def _(a):
    return a.indices.new_empty(a.indices.shape, dtype=torch.float32)


# ---- many tables -------------------------------------------------------------------------


def check_tables(a: Any) -> None:
    check_dtype(a, "packed", torch.uint8)
    check_dim(a, "packed", 1)
    check_bits(a)
    for name in ("rows", "dims"):
        check_dtype(a, name, torch.int64)
        check_dim(a, name, 1)
        check_device(a, name, a.packed.device)
    tables = a.rows.shape[0]
    fits = a.dims.shape[0] == tables and tables > 0
    got = f"{shape(a.dims)} for rows {shape(a.rows)}"
    check(fits, a, "dims", "one width per table, at least one", got)
    check_dim(a, "offsets", 1)
    known = a.offsets.shape[0]
    fits = known > 0 and (known - 1) % tables == 0
    check(fits, a, "offsets", f"tables * bags + 1 offsets for {tables} tables", known)
    check_index_dtype(a, "indices")
    check_bags(a, a.packed.device)


def read_tables(op: str, packed: Tensor, rows: Tensor, dims: Tensor, bits: int) -> list:
    """(packed table (N, row_bytes), dim) of each table in a concatenation."""
    sizes = [(int(n), int(d)) for n, d in zip(rows, dims, strict=True)]
    for t, (n, d) in enumerate(sizes):
        check_width(op, d)
        check(n >= 0, op, "rows", "no negative number", f"{n} for table {t}")
    row_bytes = [layout(d, bits).row_bytes for _, d in sizes]
    for t, ((n, _), b) in enumerate(zip(sizes, row_bytes, strict=True)):
        got = f"{packed.numel()} bytes"
        fits = n <= packed.numel() // b
        check(fits, op, "packed", f"{n} rows of {b} bytes for table {t}", got)
    used = [n * b for (n, _), b in zip(sizes, row_bytes, strict=True)]
    aligned = [(u + 63) // 64 * 64 for u in used]
    text = f"{sum(used)} bytes (tables end to end) or {sum(aligned)} (each start on 64 bytes)"
    check(packed.numel() in (sum(used), sum(aligned)), op, "packed", text, packed.numel())
    spans, at, found = (aligned if packed.numel() == sum(aligned) else used), 0, []
    for (n, d), b, u, span in zip(sizes, row_bytes, used, spans, strict=True):
        found.append((packed[at : at + u].reshape(n, b), d))
        at += span
    return found


def ids_of_table(bag: Tensor, table: int, each: int) -> Tensor:
    """Positions of the ids in the ``each`` bags of one table."""
    return ((bag >= table * each) & (bag < (table + 1) * each)).nonzero().squeeze(1)


@op(family=FAMILY, internal=True)
def quantized_embedding_bags_backward(
    grad: Tensor,
    packed: Tensor,
    rows: Tensor,
    dims: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bits: int,
) -> Tensor:
    """Gradient of per_sample_weights over several tables."""
    tables = read_tables("quantized_embedding_bags_backward", packed, rows, dims, bits)
    bags = Bags(indices, offsets, True)
    bag, each = bags.of_each_id(), bags.count() // len(tables)
    out = torch.zeros(indices.shape, dtype=torch.float64, device=indices.device)
    column = 0
    for t, (table, dim) in enumerate(tables):
        mine = ids_of_table(bag, t, each)
        g = grad[:, column : column + dim].double()[bag[mine] - t * each]
        out[mine] = (look_up(table, indices[mine], dim, bits) * g).sum(1)
        column += dim
    return out.float()


@quantized_embedding_bags_backward.check
def _(a) -> None:
    check_tables(a)
    bags = Bags.of(a).count() // a.rows.shape[0]
    fits = a.grad.dim() == 2 and a.grad.shape[0] == bags
    check(fits, a, "grad", f"shape ({bags}, the sum of dims)")


@quantized_embedding_bags_backward.fake
def _(a):
    return a.indices.new_empty(a.indices.shape, dtype=torch.float32)
