"""Definitions, checks and fake kernels of the ops on row-wise quantized tables."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library._old_checks import (
    check,
    check_device,
    check_dim,
    check_dtype,
    check_floating,
    check_index_dtype,
    refuse,
)
from . import _rowwise


def check_bits(op: str, bits: int) -> None:
    check(bits in (4, 8), op, "bits", "8 or 4", bits)


def check_weight(weight: Tensor, bits: int) -> None:
    op = "quantize_rows"
    check_dim(op, "weight", weight, 2)
    check_bits(op, bits)
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        wanted = "wanted float32, float16 or bfloat16"
        refuse(op, "weight", f"{wanted}, got {weight.dtype}", TypeError)
    check(weight.shape[1] > 0, op, "weight", "a positive width", weight)


def check_rows(op: str, codes: Tensor, scale: Tensor, mid: Tensor) -> None:
    check_dim(op, "codes", codes, 2)
    check_dtype(op, "codes", codes, torch.int8)
    for name, t in (("scale", scale), ("mid", mid)):
        if t.dtype != torch.float64:  # the float64 reference of verify widens the pairs
            check_dtype(op, name, t, torch.float32)
        check_dim(op, name, t, 1)
        check(t.shape[0] == codes.shape[0], op, name, f"shape ({codes.shape[0]},)", t)
        check_device(op, name, t, codes.device)


def check_packed(op: str, packed: Tensor, dim: int, bits: int) -> None:
    check_dtype(op, "packed", packed, torch.uint8)
    check_bits(op, bits)
    check(dim > 0, op, "dim", "a positive width", dim)
    check_dim(op, "packed", packed, 2)
    wanted = _rowwise.layout(dim, bits).row_bytes
    text = f"{wanted} bytes a row for dim {dim} at {bits} bits"
    check(packed.shape[1] == wanted, op, "packed", text, packed)


def check_mode(op: str, mode: str, weights: Tensor | None) -> None:
    check(mode in ("sum", "mean"), op, "mode", "'sum' or 'mean'", repr(mode))
    fits = weights is None or mode == "sum"
    check(fits, op, "per_sample_weights", "mode 'sum' with weights", repr(mode))


def check_bags(op, indices, offsets, include_last, weights, device) -> None:
    """Shapes and dtypes of one call's ids; :func:`check_values` looks at the numbers."""
    check_index_dtype(op, "indices", indices)
    check_device(op, "indices", indices, device)
    if offsets is not None:
        check_dim(op, "indices", indices, 1)
        check_index_dtype(op, "offsets", offsets)
        check_dim(op, "offsets", offsets, 1)
        check_device(op, "offsets", offsets, device)
        fits = not include_last or offsets.shape[0] > 0
        check(fits, op, "offsets", "at least one with include_last_offset", offsets)
    else:
        fits = indices.dim() in (1, 2)
        check(fits, op, "indices", "1 or 2 dimensions without offsets", indices)
        check(not include_last, op, "include_last_offset", "offsets with it", None)
    if weights is not None:
        check_floating(op, "per_sample_weights", weights)
        check_device(op, "per_sample_weights", weights, device)
        fits = weights.shape == indices.shape
        wanted = f"the shape of indices {tuple(indices.shape)}"
        check(fits, op, "per_sample_weights", wanted, weights)


def check_output_dtype(op: str, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point or dtype.itemsize < 2:
        wanted = "wanted float32, float64, float16 or bfloat16"
        refuse(op, "output_dtype", f"{wanted}, got {dtype}", TypeError)


def bag_count(indices: Tensor, offsets: Tensor | None, include_last: bool) -> int:
    return indices.shape[0] if offsets is None else offsets.shape[0] - int(include_last)


def check_values(op, indices, offsets, include_last, rows_of, table_of) -> None:
    """Offsets rise from 0 to at most the number of ids; every pooled id is a row.

    ``rows_of`` and ``table_of`` map the position of an id to its table's rows and number.
    Ids behind the last bag are not pooled.
    """
    used = indices.numel()
    if offsets is not None and offsets.numel() > 0:
        o = offsets.long()
        check(int(o[0]) == 0, op, "offsets", "0 first", int(o[0]))
        falls = (o.diff() < 0).nonzero()
        if falls.numel():
            at = int(falls[0]) + 1
            got = f"{int(o[at])} after {int(o[at - 1])} at position {at}"
            refuse(op, "offsets", f"wanted no decrease, got {got}")
        text = f"at most {used} (the number of indices)"
        check(int(o[-1]) <= used, op, "offsets", text, f"{int(o[-1])} at position {len(o) - 1}")
    if include_last:
        used = int(offsets[-1])
    flat = indices.reshape(-1)[:used].long()
    bad = ((flat < 0) | (flat >= rows_of[:used])).nonzero()
    if bad.numel():
        at = int(bad[0])
        table, rows = int(table_of[at]), int(rows_of[at])
        raise IndexError(
            f"lirank::{op}: indices[{at}] = {int(flat[at])} is out of range for table {table} "
            f"with {rows} rows"
        )


def bag_of_position(indices: Tensor, offsets: Tensor | None, include_last: bool) -> Tensor:
    """The bag of every id, in order; -1 behind the last bag."""
    n = indices.numel()
    position = torch.arange(n, device=indices.device)
    if offsets is None:
        return position // max(1, indices.shape[1] if indices.dim() == 2 else 1)
    bags = torch.searchsorted(offsets.long(), position, right=True) - 1
    return torch.where(bags < bag_count(indices, offsets, include_last), bags, -1)


def pool(rows: Tensor, bag: Tensor, bags: int, mode: str, weights: Tensor | None) -> Tensor:
    """Sum (mean) the row of every id into its bag; -1 is no bag."""
    keep = bag >= 0
    rows, bag = rows[keep], bag[keep]
    if weights is not None:
        rows = rows * weights.reshape(-1)[keep].unsqueeze(1).to(rows.dtype)
    out = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows)
    if mode == "mean":
        count = torch.bincount(bag, minlength=bags).clamp(min=1)
        out = out / count.unsqueeze(1)
    return out


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in float32."""
    check_weight(weight, bits)
    w = weight.detach().float()
    half, steps = 2 ** (bits - 1), 2**bits - 1
    high, low = w.amax(1), w.amin(1)
    # A tensor: on a GPU PyTorch multiplies by the reciprocal of a number, which rounds differently.
    divisor = torch.full_like(high, steps)
    scale = (high - low) / divisor
    mid = (high * half + low * (half - 1)) / divisor
    bad = ~(w.isfinite().all(1) & scale.isfinite() & mid.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0])
        text = "wanted finite values in a range that float32 holds"
        refuse("quantize_rows", "weight", f"{text}, got row {row} with NaN, Inf or a larger range")
    constant = scale == 0
    scale = torch.where(constant, torch.ones_like(scale), scale)
    mid = torch.where(constant, high, mid)
    codes = torch.round((w - mid.unsqueeze(1)) / scale.unsqueeze(1)).clamp(-half, half - 1)
    codes = torch.where(constant.unsqueeze(1), torch.zeros_like(codes), codes)
    return codes.to(torch.int8), scale, mid


def dequantize_rows(codes: Tensor, scale: Tensor, mid: Tensor) -> Tensor:
    check_rows("dequantize_rows", codes, scale, mid)
    return mid.unsqueeze(1) + codes.to(scale.dtype) * scale.unsqueeze(1)


def pack_rows(codes: Tensor, scale: Tensor, mid: Tensor, bits: int = 8) -> Tensor:
    op = "pack_rows"
    check_rows(op, codes, scale, mid)
    check_bits(op, bits)
    check(codes.shape[1] > 0, op, "dim", "a positive width", codes.shape[1])
    outside = ((codes < -8) | (codes > 7)).any(1) if bits == 4 else codes.new_zeros(1).bool()
    if outside.any():
        row = int(outside.nonzero()[0])
        refuse(op, "codes", f"wanted codes in [-8, 7] for 4 bits, got row {row} with others")
    return _rowwise.pack(codes, scale, mid, bits)


def unpack_rows(packed: Tensor, dim: int, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    check_packed("unpack_rows", packed, dim, bits)
    return _rowwise.unpack(packed, dim, bits)


def _look_up(packed: Tensor, ids: Tensor, dim: int, bits: int) -> Tensor:
    codes, scale, mid = _rowwise.unpack(packed, dim, bits)
    ids = ids.long()
    codes, scale, mid = codes[ids].double(), scale[ids].double(), mid[ids].double()
    return mid.unsqueeze(1) + codes * scale.unsqueeze(1)


def quantized_embedding_bag(
    packed,
    indices,
    offsets,
    dim,
    bits=8,
    mode="sum",
    per_sample_weights=None,
    include_last_offset=False,
    output_dtype=torch.float32,
):
    """Dequantize in float64, gather, pool."""
    op = "quantized_embedding_bag"
    check_bag_call(op, packed, indices, offsets, dim, bits, mode, per_sample_weights,
                   include_last_offset, output_dtype)  # fmt: skip
    n = indices.numel()
    table_of, rows_of = torch.zeros(n).long(), torch.full((n,), packed.shape[0])
    check_values(op, indices, offsets, include_last_offset, rows_of.to(indices.device), table_of)
    bag = bag_of_position(indices, offsets, include_last_offset)
    bags, pooled = bag_count(indices, offsets, include_last_offset), bag >= 0
    rows = _look_up(packed, indices.reshape(-1)[pooled], dim, bits)
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)[pooled]
    return pool(rows, bag[pooled], bags, mode, weights).to(output_dtype)


def check_bag_call(op, packed, indices, offsets, dim, bits, mode, weights, include_last, dtype):
    check_packed(op, packed, dim, bits)
    check_mode(op, mode, weights)
    check_output_dtype(op, dtype)
    check_bags(op, indices, offsets, include_last, weights, packed.device)


def read_tables(op: str, packed: Tensor, rows: Tensor, dims: Tensor, bits: int) -> list:
    """(packed table (N, row_bytes), dim) of each table in a concatenation."""
    sizes = [(int(n), int(d)) for n, d in zip(rows, dims, strict=True)]
    for t, (n, d) in enumerate(sizes):
        check(d > 0, op, "dim", "a positive width", d)
        check(n >= 0, op, "rows", "no negative number", f"{n} for table {t}")
    row_bytes = [_rowwise.layout(d, bits).row_bytes for _, d in sizes]
    used = [n * b for (n, _), b in zip(sizes, row_bytes, strict=True)]
    aligned = [(u + 63) // 64 * 64 for u in used]
    text = f"{sum(used)} bytes (tables end to end) or {sum(aligned)} (each start on 64 bytes)"
    check(packed.numel() in (sum(used), sum(aligned)), op, "packed", text, packed.numel())
    spans, at, found = (aligned if packed.numel() == sum(aligned) else used), 0, []
    for (n, d), b, u, span in zip(sizes, row_bytes, used, spans, strict=True):
        found.append((packed[at : at + u].reshape(n, b), d))
        at += span
    return found


def check_bags_call(op, packed, rows, dims, indices, offsets, bits, mode, weights, dtype):
    check_mode(op, mode, weights)
    check_output_dtype(op, dtype)
    check_dtype(op, "packed", packed, torch.uint8)
    check_dim(op, "packed", packed, 1)
    check_bits(op, bits)
    for name, t in (("rows", rows), ("dims", dims)):
        check_dtype(op, name, t, torch.int64)
        check_dim(op, name, t, 1)
    tables = rows.shape[0]
    fits = dims.shape[0] == tables and tables > 0
    check(fits, op, "dims", "one width per table, at least one", dims)
    check_dim(op, "offsets", offsets, 1)
    fits = offsets.shape[0] > 0 and (offsets.shape[0] - 1) % tables == 0
    text = f"tables * bags + 1 offsets for {tables} tables"
    check(fits, op, "offsets", text, offsets.shape[0])
    check_bags(op, indices, offsets, True, weights, packed.device)


def quantized_embedding_bags(
    packed,
    rows,
    dims,
    indices,
    offsets,
    bits=8,
    mode="sum",
    per_sample_weights=None,
    output_dtype=torch.float32,
    total_dim=-1,
):
    """Table by table in float64."""
    op = "quantized_embedding_bags"
    weights = per_sample_weights
    check_bags_call(op, packed, rows, dims, indices, offsets, bits, mode, weights, output_dtype)
    tables = read_tables(op, packed, rows, dims, bits)
    width = sum(d for _, d in tables)
    check(total_dim in (-1, width) or total_dim < 0, op, "total_dim",
          f"the sum of dims {width}", total_dim)  # fmt: skip
    bags = (offsets.shape[0] - 1) // len(tables)
    bag = bag_of_position(indices, offsets, True)
    table_of = (bag // max(1, bags)).clamp(0, len(tables) - 1)
    check_values(op, indices, offsets, True, rows.to(indices.device)[table_of], table_of)
    parts = []
    for t, (table, dim) in enumerate(tables):
        mine = ((bag >= t * bags) & (bag < (t + 1) * bags)).nonzero().squeeze(1)
        found = _look_up(table, indices[mine], dim, bits)
        w = None if weights is None else weights[mine]
        parts.append(pool(found, bag[mine] - t * bags, bags, mode, w))
    return torch.cat(parts, 1).to(output_dtype)


def quantized_embedding_bag_backward(
    grad, packed, indices, offsets, dim, bits, include_last_offset
):
    """Gradient of per_sample_weights: <grad of the bag, row>."""
    op = "quantized_embedding_bag_backward"
    check_bag_call(op, packed, indices, offsets, dim, bits, "sum", None, include_last_offset,
                   torch.float32)  # fmt: skip
    bag = bag_of_position(indices, offsets, include_last_offset)
    pooled = bag >= 0
    rows = _look_up(packed, indices.reshape(-1)[pooled], dim, bits)
    out = torch.zeros(indices.numel(), dtype=torch.float64, device=indices.device)
    out[pooled] = (rows * grad.double()[bag[pooled]]).sum(1)
    return out.float().reshape(indices.shape)


def quantized_embedding_bags_backward(grad, packed, rows, dims, indices, offsets, bits):
    """Gradient of per_sample_weights over several tables."""
    op = "quantized_embedding_bags_backward"
    check_bags_call(op, packed, rows, dims, indices, offsets, bits, "sum", None, torch.float32)
    tables = read_tables(op, packed, rows, dims, bits)
    bags = (offsets.shape[0] - 1) // len(tables)
    bag = bag_of_position(indices, offsets, True)
    out = torch.zeros(indices.shape, dtype=torch.float64, device=indices.device)
    column = 0
    for t, (table, dim) in enumerate(tables):
        mine = ((bag >= t * bags) & (bag < (t + 1) * bags)).nonzero().squeeze(1)
        g = grad[:, column : column + dim].double()[bag[mine] - t * bags]
        out[mine] = (_look_up(table, indices[mine], dim, bits) * g).sum(1)
        column += dim
    return out.float()
