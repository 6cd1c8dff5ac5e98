"""Embeddings of ids without a vocabulary: hash, quotient and remainder rows, pooled.

Source: LiRank (arXiv 2402.06859), vocabulary compression; quotient and remainder tables from
Shi et al. 2019 (arXiv 1909.02107).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._hashed_registry import bag_op, packed_op


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
    """Embed ids by their hash and pool them per bag, in one pass.

    ``h = murmur_hash(id, seed)``; ``b`` and ``c`` are its low and high 32 bits, unsigned. With
    m remainders, ``b' = b % num_buckets``::

        row(id) = quotient_b[b' // m] + remainder_b[b' % m]
                + quotient_c[c' // m] + remainder_c[c' % m]

    ``offsets=None`` with (len,) ids is a plain look-up, with (B, L) ids bags of L. An empty bag
    gives zeros. Half precision is summed in float32. Sums, and gradients, do not depend on the
    number of threads.

    Args:
        ids: int64 (len,), or (B, L) without offsets.
        offsets: int32 or int64 (B,), or (B + 1,) with ``include_last_offset``; or None.
        quotient_b, quotient_c: (ceil(num_buckets / m), D) floating. The CPU copies a strided
            table in every call; CUDA kernels read one where it lies.
        remainder_b, remainder_c: (m, D) of the same dtype.
        num_buckets: 1 to 2^32.
        seed: of the hash, 0 to 2^32 - 1.
        mode: "sum" or "mean".
        per_sample_weights: floating, shape of ``ids``, mode "sum" only; differentiable.
        include_last_offset: ``offsets`` ends with the end of the last bag.
        prehashed: ``ids`` are hashes already, such as those of ``hash_strings``.
        sparse: gradients of the quotient tables are sparse and coalesced; those of the small
            remainder tables are always dense. Under ``torch.compile`` and ``torch.func``, which
            cannot carry sparse gradients, all are dense.

    Returns:
        (B, D), dtype of the tables.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or table rows do not fit.
    """
    return bag_op(
        ids,
        offsets,
        quotient_b,
        remainder_b,
        quotient_c,
        remainder_c,
        num_buckets,
        seed,
        mode,
        per_sample_weights,
        include_last_offset,
        prehashed,
        sparse,
    )


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
        output_dtype: floating dtype of the result.

    Returns:
        (B, D) of ``output_dtype``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes, offsets or table rows do not fit.
    """
    return packed_op(
        ids,
        offsets,
        quotient_b,
        remainder_b,
        quotient_c,
        remainder_c,
        num_buckets,
        dim,
        bits,
        seed,
        mode,
        per_sample_weights,
        include_last_offset,
        prehashed,
        output_dtype,
    )
