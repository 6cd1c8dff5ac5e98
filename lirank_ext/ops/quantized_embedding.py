"""Row-wise quantized tables: middle-max int8 and int4 rows, and look-ups that read them.

Source: LiRank (arXiv 2402.06859), embedding table quantization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..library.op import index_error
from ._quantized_registry import (
    bag_op,
    bags_op,
    dequantize_op,
    pack_op,
    quantize_op,
    unpack_op,
)


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row of a table around its middle-max point.

    Per row, in float32 and in this order of operations::

        scale = (max - min) / (2^bits - 1)
        mid   = (max * 2^(bits-1) + min * (2^(bits-1) - 1)) / (2^bits - 1)
        codes = clamp(round_half_even((w - mid) / scale), -2^(bits-1), 2^(bits-1) - 1)

    A constant row gives codes 0, scale 1 and mid = the value. The codes are the same bits on
    every backend. Gradients do not flow through.

    Args:
        weight: (N, D) float32, float16 or bfloat16.
        bits: 8 or 4.

    Returns:
        ``codes`` int8 (N, D) (also for 4 bits), ``scale`` float32 (N,), ``mid`` float32 (N,).

    Raises:
        ValueError: a row holds NaN or Inf, or its range overflows float32; the row is named.
        ValueError, TypeError, RuntimeError: shapes, dtypes or ``bits`` do not fit.
    """
    try:
        return quantize_op(weight, bits)
    except RuntimeError as error:
        raise (ValueError(str(error)) if "got row" in str(error) else error) from None


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
    return dequantize_op(codes, scale, mid)


def pack_rows(codes: Tensor, scale: Tensor, mid: Tensor, bits: int = 8) -> Tensor:
    """Lay a quantized table out as the look-ups read it.

    Args:
        codes: int8 (N, D); in [-8, 7] for 4 bits.
        scale: float32 (N,).
        mid: float32 (N,).
        bits: 8 or 4.

    Returns:
        uint8 (N, row_bytes), opaque: only N is meaningful. See
        ``csrc/quantized_embedding_layout.h``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or codes do not fit, or a gradient is
            wanted: a quantized table cannot be trained.
    """
    if torch.is_grad_enabled() and (scale.requires_grad or mid.requires_grad):
        raise ValueError(
            "lirank::pack_rows: argument 'scale' or 'mid': wanted requires_grad=False, got True: "
            "a quantized table cannot be trained; detach() it first"
        )
    return pack_op(codes, scale, mid, bits)


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
    return unpack_op(packed, dim, bits)


def quantized_embedding_bag(
    packed: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    dim: int,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    output_dtype: torch.dtype = torch.float32,
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
        output_dtype: floating dtype of the result.

    Returns:
        (B, D) of ``output_dtype``.

    Raises:
        IndexError: an index outside [0, N); table, position, index and N are named.
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or the table do not fit.
    """
    try:
        if per_sample_weights is None and not include_last_offset and output_dtype is torch.float32:
            # An argument costs 0.3 us on its way to C++; these have the schema's defaults.
            return bag_op(packed, indices, offsets, dim, bits, mode)
        return bag_op(
            packed,
            indices,
            offsets,
            dim,
            bits,
            mode,
            per_sample_weights,
            include_last_offset,
            output_dtype,
        )
    except RuntimeError as error:
        raise index_error(error) from None


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


def quantized_embedding_bags(
    packed: Tensor | Sequence[Tensor],
    rows: Tensor,
    dims: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    output_dtype: torch.dtype = torch.float32,
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
    if not isinstance(packed, Tensor):
        packed = concatenate_tables(packed)
    try:
        return bags_op(
            packed,
            rows,
            dims,
            indices,
            offsets,
            bits,
            mode,
            per_sample_weights,
            output_dtype,
            total_dim,
        )
    except RuntimeError as error:
        raise index_error(error) from None
