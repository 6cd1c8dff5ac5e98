"""Row-wise quantized tables: middle-max int8 and int4 rows, made, packed and read back.

Source: LiRank (arXiv 2402.06859), embedding table quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, refuse
from ..library.op import op
from .quantized_embedding_layout import check_bits, check_packed, layout, pack, unpack

FAMILY = "quantized_embedding"


@op(family=FAMILY)
def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row of a table around its middle-max point.

    Per row, in float32 and in this order of operations::

        scale = (max - min) / (2^bits - 1)
        mid   = (max * 2^(bits-1) + min * (2^(bits-1) - 1)) / (2^bits - 1)
        codes = clamp(round_half_even((w - mid) / scale), -2^(bits-1), 2^(bits-1) - 1)

    A constant row gives codes 0, scale 1 and mid = the value. The codes are the same bits on
    every backend. Gradients do not flow through, and forward mode and ``torch.func``, which would
    take that for a derivative of zero, are refused.

    Args:
        weight: (N, D) float32, float16 or bfloat16.
        bits: 8 or 4.

    Returns:
        ``codes`` int8 (N, D) (also for 4 bits), ``scale`` float32 (N,), ``mid`` float32 (N,).

    Raises:
        ValueError: a row holds NaN or Inf, or its range overflows float32; the row is named. Or a
            derivative is wanted in forward mode or by ``torch.func``.
        ValueError, TypeError, RuntimeError: shapes, dtypes or ``bits`` do not fit.

    Examples:
        >>> weight = torch.tensor([[-1.0, 0.0, 1.0], [5.0, 5.0, 5.0]])
        >>> codes, scale, mid = lirank_ext.quantize_rows(weight)
        >>> codes
        tensor([[-128,    0,  127],
                [   0,    0,    0]], dtype=torch.int8)
        >>> error = (lirank_ext.dequantize_rows(codes, scale, mid) - weight).abs().max()
        >>> bool(error < scale[0])
        True
    """
    codes, scale, mid = rows_to_codes(weight, bits)
    _, _, raw_scale, raw_mid = _middle_and_step(weight.detach().float(), bits)
    bad = ~(weight.detach().isfinite().all(1) & raw_scale.isfinite() & raw_mid.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0])
        text = "wanted finite values in a range that float32 holds"
        refuse("quantize_rows", "weight", f"{text}, got row {row} with NaN, Inf or a larger range")
    return codes, scale, mid


def rows_to_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of :func:`quantize_rows` on finite rows."""
    w, half = weight.detach().float(), 2 ** (bits - 1)
    high, _, scale, mid = _middle_and_step(w, bits)
    constant = scale == 0
    scale = torch.where(constant, torch.ones_like(scale), scale)
    mid = torch.where(constant, high, mid)
    codes = torch.round((w - mid.unsqueeze(1)) / scale.unsqueeze(1)).clamp(-half, half - 1)
    codes = torch.where(constant.unsqueeze(1), torch.zeros_like(codes), codes)
    return codes.to(torch.int8), scale, mid


def _middle_and_step(w: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest, smallest, scale and mid of each row, before constant rows get a scale of 1."""
    half, steps = 2 ** (bits - 1), 2**bits - 1
    high, low = w.amax(1), w.amin(1)
    # A tensor: on a GPU PyTorch multiplies by the reciprocal of a number, which rounds differently.
    divisor = torch.full_like(high, steps)
    return high, low, (high - low) / divisor, (high * half + low * (half - 1)) / divisor


@quantize_rows.check
def _(a) -> None:
    check_dim(a, "weight", 2)
    check_bits(a)
    if a.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        wanted = "wanted float32, float16 or bfloat16"
        refuse(a, "weight", f"{wanted}, got {a.weight.dtype}", TypeError)
    check(a.weight.shape[1] > 0, a, "weight", "a positive width")


@quantize_rows.fake
def _(a):
    row = a.weight.new_empty(a.weight.shape[0], dtype=torch.float32)
    return a.weight.new_empty(a.weight.shape, dtype=torch.int8), row, torch.empty_like(row)


quantize_rows.no_gradient(
    "lirank::quantize_rows: argument 'weight': wanted a tensor without a derivative in forward "
    "mode and in torch.func, got one with: codes have none; detach() it first",
    only_transforms=True,
)


@op(family=FAMILY)
def dequantize_rows(codes: Tensor, scale: Tensor, mid: Tensor) -> Tensor:
    """``mid + codes * scale`` per row; differentiable in ``scale`` and ``mid``.

    Args:
        codes: int8 (N, D).
        scale: float32 (N,).
        mid: float32 (N,).

    Returns:
        float32 (N, D).

    Raises:
        ValueError, TypeError, RuntimeError: shapes or dtypes do not fit.
    """
    return mid.unsqueeze(1) + codes.to(scale.dtype) * scale.unsqueeze(1)


@dequantize_rows.check
def _check_rows(a: Any) -> None:
    check_dim(a, "codes", 2)
    check_dtype(a, "codes", torch.int8)
    for name in ("scale", "mid"):
        t = getattr(a, name)
        if t.dtype != torch.float64:  # the float64 reference of verify widens the pairs
            check_dtype(a, name, torch.float32)
        check_dim(a, name, 1)
        check(t.shape[0] == a.codes.shape[0], a, name, f"shape ({a.codes.shape[0]},)")
        check_device(a, name, a.codes.device)


@dequantize_rows.fake
def _(a):
    return a.codes.new_empty(a.codes.shape, dtype=a.scale.dtype)


@dequantize_rows.backward(saves=("codes", "scale", "mid"), by_reference=True)
def _(a, grad):
    return {"scale": (grad * a.codes.to(grad.dtype)).sum(1), "mid": grad.sum(1)}


@op(family=FAMILY)
def pack_rows(codes: Tensor, scale: Tensor, mid: Tensor, bits: int = 8) -> Tensor:
    """Lay a quantized table out as the look-ups read it.

    Args:
        codes: int8 (N, D); in [-8, 7] for 4 bits.
        scale: float32 (N,).
        mid: float32 (N,).
        bits: 8 or 4.

    Returns:
        uint8 (N, row_bytes), to be read as a whole. For some widths the codes of all rows stand
        before the scales of all rows, so ``packed[:5]`` or ``torch.cat`` give other values. Take
        rows with :func:`slice_rows` and join tables with :func:`concatenate_rows`. See
        ``csrc/quantized_embedding_layout.h``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or codes do not fit, or a gradient is
            wanted: a quantized table cannot be trained.

    Examples:
        >>> rows = lirank_ext.quantize_rows(torch.randn(100, 64))
        >>> packed = lirank_ext.pack_rows(*rows)
        >>> [bool(a.equal(b)) for a, b in zip(rows, lirank_ext.unpack_rows(packed, dim=64))]
        [True, True, True]
    """
    outside = ((codes < -8) | (codes > 7)).any(1) if bits == 4 else codes.new_zeros(1).bool()
    if outside.any():
        row = int(outside.nonzero()[0])
        text = f"wanted codes in [-8, 7] for 4 bits, got row {row} with others"
        refuse("pack_rows", "codes", text)
    return pack(codes, scale, mid, bits)


@pack_rows.check
def _(a) -> None:
    _check_rows(a)
    check_bits(a)
    check(a.codes.shape[1] > 0, a, "dim", "a positive width", a.codes.shape[1])


@pack_rows.fake
def _(a):
    row_bytes = layout(a.codes.shape[1], a.bits).row_bytes
    return a.codes.new_empty((a.codes.shape[0], row_bytes), dtype=torch.uint8)


pack_rows.no_gradient(
    "lirank::pack_rows: argument 'scale' or 'mid': wanted no gradient, got a tensor with one: "
    "a quantized table cannot be trained; detach() it first"
)


@op(family=FAMILY)
def unpack_rows(packed: Tensor, dim: int, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The exact inverse of :func:`pack_rows`.

    Args:
        packed: uint8 (N, row_bytes).
        dim: width D of the table.
        bits: 8 or 4.

    Returns:
        ``codes`` int8 (N, D), ``scale`` float32 (N,), ``mid`` float32 (N,).

    Raises:
        ValueError, TypeError, RuntimeError: ``packed`` is no table of that width and bits.
    """
    return unpack(packed, dim, bits)


@unpack_rows.check
def _(a) -> None:
    check_packed(a, "packed")


@unpack_rows.fake
def _(a):
    rows = a.packed.shape[0]
    row = a.packed.new_empty(rows, dtype=torch.float32)
    return a.packed.new_empty((rows, a.dim), dtype=torch.int8), row, torch.empty_like(row)


def slice_rows(packed: Tensor, rows: slice | Tensor, dim: int, bits: int = 8) -> Tensor:
    """A packed table of some rows of another, bit for bit.

    Args:
        packed: uint8 (N, row_bytes), from :func:`pack_rows`.
        rows: a slice, or the numbers of the rows, int64 (M,), or bool (N,).
        dim: width D of the table.
        bits: 8 or 4.

    Returns:
        uint8 (M, row_bytes), a copy.

    Raises:
        ValueError, TypeError, RuntimeError: ``packed`` is no table of that width and bits.
        IndexError: there is no such row.
    """
    return pack_rows(*(part[rows] for part in unpack_rows(packed, dim, bits)), bits)


def concatenate_rows(tables: Sequence[Tensor], dim: int, bits: int = 8) -> Tensor:
    """One packed table of the rows of several, one table after the other.

    Args:
        tables: uint8 (N_t, row_bytes) each, from :func:`pack_rows`, all of one width and bits.
        dim: width D of the tables.
        bits: 8 or 4.

    Returns:
        uint8 (sum of N_t, row_bytes), a copy.

    Raises:
        ValueError, TypeError, RuntimeError: there is no table, or one is not of that width and
            bits.
    """
    if len(tables) == 0:
        refuse("concatenate_rows", "tables", "wanted at least one table, got none")
    unpacked = (unpack_rows(table, dim, bits) for table in tables)
    return pack_rows(*(torch.cat(parts) for parts in zip(*unpacked, strict=True)), bits)
