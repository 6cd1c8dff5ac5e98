"""Embeddings of ids without a vocabulary: hash, quotient and remainder rows, pooled.

Source: LiRank (arXiv 2402.06859), vocabulary compression; quotient and remainder tables from
Shi et al. 2019 (arXiv 1909.02107).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..library.op import op
from .bags import Bags, check_offsets
from .hashed_embedding_backward import (
    check_tables,
    hashed_embedding_bag_backward,
    hashed_embedding_bag_backward_sparse,
    hashed_embedding_bag_backward_weights,
    sum_of_rows,
)
from .hashed_embedding_rule import TABLES, check_ids, check_rule, tables_of


@op
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
        ids: int64 or int32 (len,), or (B, L) without offsets; int64 if they are hashes.
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
    bags = Bags(ids, offsets, include_last_offset, mode, per_sample_weights)
    check_offsets("hashed_embedding_bag", bags, "ids")
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    rows = sum_of_rows(tables, ids, num_buckets, seed, prehashed)
    return bags.pool(rows).to(quotient_b.dtype)


@hashed_embedding_bag.check
def _(a) -> None:
    check_rule(a)
    check_tables(a)
    check_ids(a, a.quotient_b.device)


@hashed_embedding_bag.fake
def _(a):
    return a.quotient_b.new_empty((Bags.of(a).size_of_result(), a.quotient_b.shape[1]))


# Without weights to train, the gradients of the tables need no table: it may change before then.
@hashed_embedding_bag.backward(
    saves=("ids", "offsets", "per_sample_weights"), saves_for={"per_sample_weights": TABLES}
)
def _(a, grad, needs):
    gradients: dict[str, Tensor] = {}
    if any(tables_of(needs)):
        remainders = a.remainder_b.shape[0]
        rule = (a.num_buckets, remainders, a.seed, a.mode, a.include_last_offset, a.prehashed)
        call = (grad, a.ids, a.offsets, a.per_sample_weights, *rule)
        if a.sparse and _carries_sparse(grad):
            tables = _sparse_gradients(call, a.quotient_b.shape)
        else:
            tables = hashed_embedding_bag_backward(*call)
        gradients |= zip(TABLES, tables, strict=True)
    if needs.per_sample_weights:
        gradients["per_sample_weights"] = hashed_embedding_bag_backward_weights(
            grad, a.ids, a.offsets, *tables_of(a), a.num_buckets, a.seed, a.include_last_offset,
            a.prehashed,
        )  # fmt: skip
    return gradients


def _sparse_gradients(call: tuple, size: torch.Size) -> tuple[Tensor, ...]:
    """Sparse ones of the quotient tables, of this size; the remainder tables are small."""
    b, values_b, remainder_b, c, values_c, remainder_c = hashed_embedding_bag_backward_sparse(*call)
    quotient_b, quotient_c = _coalesced(b, values_b, size), _coalesced(c, values_c, size)
    return quotient_b, remainder_b, quotient_c, remainder_c


def _carries_sparse(grad: Tensor) -> bool:
    """Only plain tensors can: a traced or functorch gradient has to stay dense."""
    plain = type(grad) is Tensor and not torch.compiler.is_compiling()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(grad)


def _coalesced(rows: Tensor, values: Tensor, size: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, size, is_coalesced=True, check_invariants=False
    )
