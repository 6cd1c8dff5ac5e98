"""Every op that a model calls in plain aten, for exported programs and other back ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..library.checks import result_dtype
from ..library.op import OPS
from .cross_net import in_parts
from .hashed_embedding_rule import compute_dtype, rows_of, tables_of
from .quantized_embedding_layout import pack, split
from .quantized_embedding_rows import rows_to_codes

# Their references are plain aten already: nothing in them depends on data.
BY_REFERENCE = (
    "low_rank_cross",
    "low_rank_cross_train",
    "outer_attention",
    "attention_cross",
    "attention_cross_train",
    "isotonic_calibration",
    "murmur_hash",
    "dequantize_rows",
    "unpack_rows",
)


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Functions in plain aten for the ops of this package.

    An exported program with them needs no library of this package: it runs wherever aten does, and
    converts to ONNX::

        program = torch.export.export(model, inputs).run_decompositions(decompositions())
        torch.onnx.export(program, dynamo=True)

    The functions check shapes and dtypes when they are traced. What only the data tells (ids out of
    range, offsets that fall) is not checked when they run. Four ops are not among them, because
    their loops or sizes are data: ``hash_strings`` and ``vocabulary_lookup``, which belong before
    the model; ``quantized_embedding_bags``, for which ``quantized_embedding_bag`` per table does
    the same; and ``residual_cross_score``, for which ``forward`` on joined rows does.

    Returns:
        A new dict from op to function, for ``torch.export.ExportedProgram.run_decompositions``.
    """
    table = {OPS[name].overload: OPS[name].reference for name in BY_REFERENCE}
    table[OPS["residual_cross_net"].overload] = _bound("residual_cross_net", _cross_net)
    # Without the check of 4-bit codes, which depends on data.
    table[OPS["pack_rows"].overload] = _bound("pack_rows", lambda a: pack(*a))
    table[OPS["quantize_rows"].overload] = _bound("quantize_rows", lambda a: rows_to_codes(*a))
    for name, function in BAGS.items():
        table[OPS[name].overload] = _bound(name, function)
    return table


def _bound(name: str, function: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function on the checked call."""
    return lambda *args, **kwargs: function(OPS[name].bind(*args, **kwargs))


def _cross_net(a: Any) -> Tensor:
    return in_parts(a, OPS["low_rank_cross"].reference, _attention)


def _attention(x0, x, q, k, v, u, bias, temperature, token_dim, skip) -> Tensor:
    if isinstance(temperature, Tensor):
        q, temperature = q / temperature, 1.0
    call = (x0, x, q, k, v, u, bias, temperature, token_dim, skip)
    return OPS["attention_cross"].reference(*call)


# ---- bags of ids -----------------------------------------------------------------------------


def _pooled(rows: Tensor, a: Any, ids: Tensor, mode: str, weights: Tensor | None) -> Tensor:
    """Sum or mean of the rows of each bag, without masks, whose sizes depend on data."""
    if a.offsets is None:
        if weights is not None:
            rows = rows * weights.reshape(-1, 1).to(rows.dtype)
        if ids.dim() == 1:
            return rows
        rows = rows.reshape(ids.shape[0], ids.shape[1], rows.shape[1])
        pooled = rows.sum(1)
        return pooled / max(1, ids.shape[1]) if mode == "mean" else pooled
    last = getattr(a, "include_last_offset", True)
    return _pool(rows, a.offsets, a.offsets.shape[0] - int(last), last, mode, weights)


def _pool(
    rows: Tensor, offsets: Tensor, count: int, last: bool, mode: str, weights: Tensor | None
) -> Tensor:
    """Bags that begin at ``offsets``, the last of which may be an end."""
    offsets = offsets.long()
    # The bag of an id: how many bags begin up to it. Ids behind the last bag get a bag of their
    # own, which is dropped.
    begins = offsets.new_zeros(rows.shape[0] + 1)
    begins = begins.scatter_add(0, offsets, torch.ones_like(offsets))
    bag = (begins.cumsum(0) - 1)[: rows.shape[0]]
    if weights is not None:
        rows = rows * weights.reshape(-1, 1).to(rows.dtype)
    index = bag.unsqueeze(1).expand(-1, rows.shape[1])
    pooled = rows.new_zeros(count + 1, rows.shape[1]).scatter_add(0, index, rows)[:count]
    if mode == "mean":
        sizes = rows.new_zeros(count + 1).scatter_add(0, bag, torch.ones_like(rows[:, 0]))
        pooled = pooled / sizes[:count].clamp(min=1).unsqueeze(1)
    return pooled


def _dequantized(packed: Tensor, ids: Tensor, dim: int, bits: int) -> Tensor:
    """The rows of these ids in float32, from their bytes by arithmetic: ONNX has no bit cast."""
    stored, pairs = (t.index_select(0, ids.long()).long() for t in split(packed, dim, bits))
    if bits == 8:
        codes = (stored[:, :dim] ^ 128) - 128
    else:
        codes = torch.stack([stored & 15, stored >> 4], 2).flatten(1)[:, :dim] - 8
    return _float(pairs[:, 4:]).unsqueeze(1) + codes.float() * _float(pairs[:, :4]).unsqueeze(1)


def _float(b: Tensor) -> Tensor:
    """(n, 4) bytes of little-endian float32 numbers, all finite -> (n,)."""
    word = b[:, 0] + b[:, 1] * 2**8 + b[:, 2] * 2**16 + b[:, 3] * 2**24
    exponent = (word >> 23) & 255
    fraction = (word & 0x7FFFFF) + torch.where(exponent > 0, 2**23, 0)
    size = fraction.double() * torch.exp2(exponent.clamp(min=1).double() - 150)
    return torch.where(word >= 2**31, -size, size).float()


def _quantized_bag(a: Any) -> Tensor:
    rows = _dequantized(a.packed, a.indices.reshape(-1), a.dim, a.bits)
    pooled = _pooled(rows, a, a.indices, a.mode, a.per_sample_weights)
    return pooled.to(result_dtype(a))


def _hashed_rows(a: Any, look_up: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    rule = (a.num_buckets, a.remainder_b.shape[0], a.seed, a.prehashed)
    rows = rows_of(a.ids.reshape(-1), *rule)
    parts = [look_up(table, row) for table, row in zip(tables_of(a), rows, strict=True)]
    return _pooled(
        parts[0] + parts[1] + parts[2] + parts[3], a, a.ids, a.mode, a.per_sample_weights
    )


def _hashed_bag(a: Any) -> Tensor:
    dtype = compute_dtype(a.quotient_b.dtype)
    pooled = _hashed_rows(a, lambda table, row: table.index_select(0, row).to(dtype))
    return pooled.to(a.quotient_b.dtype)


def _quantized_hashed_bag(a: Any) -> Tensor:
    pooled = _hashed_rows(a, lambda table, row: _dequantized(table, row, a.dim, a.bits))
    return pooled.to(result_dtype(a))


BAGS = {
    "quantized_embedding_bag": _quantized_bag,
    "hashed_embedding_bag": _hashed_bag,
    "quantized_hashed_embedding_bag": _quantized_hashed_bag,
}
