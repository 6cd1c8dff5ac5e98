"""Definitions and checks of the look-ups in hashed tables."""

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
)
from . import _quantized_reference as quantized
from .hashing import murmur

TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
HALF = 0xFFFFFFFF


def check_rule(op: str, num_buckets: int, seed: int) -> None:
    check(0 < num_buckets <= 1 << 32, op, "num_buckets", "1 to 2^32", num_buckets)
    check(0 <= seed <= HALF, op, "seed", "0 to 2^32 - 1", seed)


def check_heights(op: str, tables: tuple[Tensor, ...], num_buckets: int) -> None:
    """Rows of the four tables against the rule."""
    remainders = tables[1].shape[0]
    check(0 < remainders <= HALF, op, "remainder_b", "1 to 2^32 - 1 rows", tables[1])
    quotients = -(-num_buckets // remainders)
    for name, t in zip(TABLES, tables, strict=True):
        rows = quotients if name.startswith("quotient") else remainders
        wanted = f"{rows} rows for {num_buckets} buckets and {remainders} remainders"
        check(t.shape[0] == rows, op, name, wanted, t)


def check_tables(op: str, tables: tuple[Tensor, ...], num_buckets: int) -> None:
    first = tables[0]
    check_floating(op, "quotient_b", first)
    for name, t in zip(TABLES, tables, strict=True):
        check_dtype(op, name, t, first.dtype)
        check_dim(op, name, t, 2)
        check_device(op, name, t, first.device)
    check(first.shape[1] > 0, op, "quotient_b", "a positive width", first)
    for name, t in zip(TABLES, tables, strict=True):
        check(t.shape[1] == first.shape[1], op, name, f"width {first.shape[1]}", t)
    check_heights(op, tables, num_buckets)


def check_packed(op, tables: tuple[Tensor, ...], num_buckets: int, dim: int, bits: int) -> None:
    check(bits in (4, 8), op, "bits", "8 or 4", bits)
    check(dim > 0, op, "dim", "a positive width", dim)
    wanted = quantized._rowwise.layout(dim, bits).row_bytes
    for name, t in zip(TABLES, tables, strict=True):
        check_dtype(op, name, t, torch.uint8)
        check_dim(op, name, t, 2)
        check_device(op, name, t, tables[0].device)
        text = f"{wanted} bytes a row for dim {dim} at {bits} bits"
        check(t.shape[1] == wanted, op, name, text, t)
    check_heights(op, tables, num_buckets)


def check_bags(op, ids, offsets, include_last, mode, weights, device) -> None:
    """Shapes and dtypes of ids and bags; :func:`check_offsets` looks at the numbers."""
    quantized.check_mode(op, mode, weights)
    check_dtype(op, "ids", ids, torch.int64)
    check_device(op, "ids", ids, device)
    if offsets is not None:
        check_dim(op, "ids", ids, 1)
        check_index_dtype(op, "offsets", offsets)
        check_dim(op, "offsets", offsets, 1)
        check_device(op, "offsets", offsets, device)
        fits = not include_last or offsets.shape[0] > 0
        check(fits, op, "offsets", "at least one with include_last_offset", offsets)
    else:
        check(ids.dim() in (1, 2), op, "ids", "1 or 2 dimensions without offsets", ids)
        check(not include_last, op, "include_last_offset", "offsets with it", None)
    if weights is not None:
        check_floating(op, "per_sample_weights", weights)
        check_device(op, "per_sample_weights", weights, device)
        wanted = f"the shape of ids {tuple(ids.shape)}"
        check(weights.shape == ids.shape, op, "per_sample_weights", wanted, weights)


def check_offsets(op: str, ids: Tensor, offsets: Tensor | None) -> None:
    """Offsets rise from 0 to at most the number of ids."""
    if offsets is None or offsets.numel() == 0:
        return
    o, used = offsets.long(), ids.numel()
    check(int(o[0]) == 0, op, "offsets", "0 first", int(o[0]))
    falls = (o.diff() < 0).nonzero()
    if falls.numel():
        at = int(falls[0]) + 1
        got = f"{int(o[at])} after {int(o[at - 1])} at position {at}"
        check(False, op, "offsets", "no decrease", got)
    text = f"at most {used} (the number of ids)"
    check(int(o[-1]) <= used, op, "offsets", text, f"{int(o[-1])} at position {len(o) - 1}")


def rows_of(ids: Tensor, num_buckets: int, num_remainders: int, seed: int, prehashed: bool):
    """(quotient_b, remainder_b, quotient_c, remainder_c) rows of each id, int64.

    Integer division throughout: a float32 one picks the wrong quotient for 8.5 % of ids.
    """
    hashes = ids if prehashed else murmur(ids, seed)
    rows = []
    for half in (hashes & HALF, (hashes >> 32) & HALF):
        bucket = half % num_buckets
        rows += [bucket // num_remainders, bucket % num_remainders]
    return tuple(rows)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def hashed_embedding_bag(
    ids: Tensor,
    offsets: Tensor | None,
    quotient_b: Tensor,
    remainder_b: Tensor,
    quotient_c: Tensor,
    remainder_c: Tensor,
    num_buckets: int,
    seed: int = 0,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    prehashed: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Hash, split, four gathers, sum, pool."""
    op, tables = "hashed_embedding_bag", (quotient_b, remainder_b, quotient_c, remainder_c)
    weights = per_sample_weights
    check_call(op, ids, offsets, tables, num_buckets, seed, mode, weights, include_last_offset)
    check_offsets(op, ids, offsets)
    rows = rows_of(ids.reshape(-1), num_buckets, remainder_b.shape[0], seed, prehashed)
    dtype = compute_dtype(quotient_b.dtype)
    found = sum(t[row].to(dtype) for t, row in zip(tables, rows, strict=True))
    return pool(found, ids, offsets, mode, weights, include_last_offset).to(quotient_b.dtype)


def check_call(op, ids, offsets, tables, num_buckets, seed, mode, weights, include_last) -> None:
    check_rule(op, num_buckets, seed)
    check_tables(op, tables, num_buckets)
    check_bags(op, ids, offsets, include_last, mode, weights, tables[0].device)


def pool(found, ids, offsets, mode, weights, include_last) -> Tensor:
    bag = quantized.bag_of_position(ids, offsets, include_last)
    bags = quantized.bag_count(ids, offsets, include_last)
    return quantized.pool(found, bag, bags, mode, weights)


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
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dequantize in float64, then the same."""
    op = "quantized_hashed_embedding_bag"
    tables, weights = (quotient_b, remainder_b, quotient_c, remainder_c), per_sample_weights
    check_packed_call(op, ids, offsets, tables, num_buckets, dim, bits, seed, mode, weights,
                      include_last_offset, output_dtype)  # fmt: skip
    check_offsets(op, ids, offsets)
    rows = rows_of(ids.reshape(-1), num_buckets, remainder_b.shape[0], seed, prehashed)
    found = sum(quantized._look_up(t, row, dim, bits) for t, row in zip(tables, rows, strict=True))
    return pool(found, ids, offsets, mode, weights, include_last_offset).to(output_dtype)


def check_packed_call(
    op, ids, offsets, tables, num_buckets, dim, bits, seed, mode, weights, include_last, dtype
) -> None:
    check_rule(op, num_buckets, seed)
    check_packed(op, tables, num_buckets, dim, bits)
    quantized.check_output_dtype(op, dtype)
    check_bags(op, ids, offsets, include_last, mode, weights, tables[0].device)


# ---- gradients ---------------------------------------------------------------------------


def _gradients_of_ids(grad, ids, offsets, weights, mode, include_last):
    """(n, D): what each id's sum of four rows receives; zeros behind the last bag."""
    dtype = compute_dtype(grad.dtype)
    bag = quantized.bag_of_position(ids, offsets, include_last)
    share = torch.cat([grad.to(dtype), grad.new_zeros(1, grad.shape[1]).to(dtype)])
    if mode == "mean":
        count = torch.bincount(bag[bag >= 0], minlength=grad.shape[0]).clamp(min=1)
        share = share / torch.cat([count, count.new_ones(1)]).unsqueeze(1)
    share = share[bag]
    return share if weights is None else share * weights.reshape(-1, 1).to(dtype)


def _check_backward(op, grad, ids, offsets, weights, num_buckets, num_remainders, seed, mode, last):
    check_rule(op, num_buckets, seed)
    check(0 < num_remainders <= HALF, op, "num_remainders", "1 to 2^32 - 1", num_remainders)
    check_floating(op, "grad", grad)
    check_bags(op, ids, offsets, last, mode, weights, grad.device)
    check_dim(op, "grad", grad, 2)
    bags = quantized.bag_count(ids, offsets, last)
    check(grad.shape[0] == bags, op, "grad", f"{bags} rows", grad)


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
    op = "hashed_embedding_bag_backward"
    _check_backward(op, grad, ids, offsets, per_sample_weights, num_buckets, num_remainders, seed,
                    mode, include_last_offset)  # fmt: skip
    check_offsets(op, ids, offsets)
    each = _gradients_of_ids(grad, ids, offsets, per_sample_weights, mode, include_last_offset)
    rows = rows_of(ids.reshape(-1), num_buckets, num_remainders, seed, prehashed)
    heights = (-(-num_buckets // num_remainders), num_remainders) * 2
    return tuple(
        each.new_zeros(height, each.shape[1]).index_add(0, row, each).to(grad.dtype)
        for height, row in zip(heights, rows, strict=True)
    )


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
    op = "hashed_embedding_bag_backward_sparse"
    _check_backward(op, grad, ids, offsets, per_sample_weights, num_buckets, num_remainders, seed,
                    mode, include_last_offset)  # fmt: skip
    check_offsets(op, ids, offsets)
    each = _gradients_of_ids(grad, ids, offsets, per_sample_weights, mode, include_last_offset)
    keep = quantized.bag_of_position(ids, offsets, include_last_offset) >= 0
    rows = rows_of(ids.reshape(-1)[keep], num_buckets, num_remainders, seed, prehashed)
    each, out = each[keep], []
    for quotient, remainder in (rows[:2], rows[2:]):
        unique, place = torch.unique(quotient, return_inverse=True)
        values = each.new_zeros(len(unique), each.shape[1]).index_add(0, place, each)
        dense = each.new_zeros(num_remainders, each.shape[1]).index_add(0, remainder, each)
        out += [unique, values.to(grad.dtype), dense.to(grad.dtype)]
    return tuple(out)


def _dot_with_grad(grad, found, ids, offsets, include_last, dtype) -> Tensor:
    bag = quantized.bag_of_position(ids, offsets, include_last)
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])]).to(found.dtype)
    return (found * padded[bag]).sum(1).to(dtype).reshape(ids.shape)


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
    op = "hashed_embedding_bag_backward_weights"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_call(op, ids, offsets, tables, num_buckets, seed, "sum", None, include_last_offset)
    _check_grad(op, grad, ids, offsets, include_last_offset, quotient_b.shape[1])
    check_offsets(op, ids, offsets)
    rows = rows_of(ids.reshape(-1), num_buckets, remainder_b.shape[0], seed, prehashed)
    dtype = compute_dtype(quotient_b.dtype)
    found = sum(t[row].to(dtype) for t, row in zip(tables, rows, strict=True))
    return _dot_with_grad(grad, found, ids, offsets, include_last_offset, dtype)


def _check_grad(op, grad, ids, offsets, include_last, dim) -> None:
    check_floating(op, "grad", grad)
    wanted = (quantized.bag_count(ids, offsets, include_last), dim)
    fits = grad.dim() == 2 and grad.shape[0] == wanted[0] and grad.shape[1] == wanted[1]
    check(fits, op, "grad", f"shape {wanted}", grad)


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
    op = "quantized_hashed_embedding_bag_backward"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    check_packed_call(op, ids, offsets, tables, num_buckets, dim, bits, seed, "sum", None,
                      include_last_offset, torch.float32)  # fmt: skip
    _check_grad(op, grad, ids, offsets, include_last_offset, dim)
    check_offsets(op, ids, offsets)
    rows = rows_of(ids.reshape(-1), num_buckets, remainder_b.shape[0], seed, prehashed)
    found = sum(quantized._look_up(t, row, dim, bits) for t, row in zip(tables, rows, strict=True))
    return _dot_with_grad(grad, found, ids, offsets, include_last_offset, torch.float32)
