"""Embedding modules without a vocabulary. They hash ids into quotient and remainder tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..library.huge_pages import use_huge_pages
from ..ops.hashed_embedding import hashed_embedding_bag
from ..ops.hashed_embedding_packed import quantized_hashed_embedding_bag
from ..ops.hashed_embedding_rule import hashed_rows
from ..ops.quantized_embedding_rows import dequantize_rows, unpack_rows
from ._common import check_choice, check_positive, refuse
from ._tagged import Tagged
from .fused_update import FusedOptimizer, in_a_group, moves_in_backward
from .hashed_embedding_sharded import is_sharded, look_up_sharded
from .quantized_embedding import (
    SCHEME,
    FollowsDtype,
    empty_table,
    packed_weight,
    refuse_training,
    refuse_weights,
)

TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")


def _check_rule(owner: str, num_buckets: int, num_remainders: int, mode: str, seed: int) -> None:
    check_positive(owner, num_buckets=num_buckets, num_remainders=num_remainders)
    if num_buckets > 1 << 32:
        refuse(owner, "num_buckets", "1 to 2^32", num_buckets)
    if num_remainders >= 1 << 32:
        refuse(owner, "num_remainders", "1 to 2^32 - 1", num_remainders)
    if not 0 <= seed < 1 << 32:
        refuse(owner, "seed", "0 to 2^32 - 1", seed)
    check_choice(owner, "mode", mode, ("sum", "mean"))


class _HashRule(Tagged):
    """The settings that map ids to rows of the four tables, and that pool a bag's rows."""

    dim: int

    def _set_rule(
        self,
        num_buckets: int,
        num_remainders: int,
        mode: str,
        seed: int,
        include_last_offset: bool,
        prehashed: bool,
    ) -> None:
        _check_rule(type(self).__name__, num_buckets, num_remainders, mode, seed)
        self.num_buckets, self.num_remainders = num_buckets, num_remainders
        self.mode, self.seed = mode, seed
        self.include_last_offset, self.prehashed = include_last_offset, prehashed

    def row_ids(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of ids in the four tables: :func:`lirank_ext.hashed_rows` by this module."""
        _check_ids(type(self).__name__, ids)
        rule = (self.num_buckets, self.num_remainders, self.seed, self.prehashed)
        return hashed_rows(ids, *rule)

    def meaning(self) -> dict[str, Any]:
        names = ("dim", "num_buckets", "num_remainders", "seed", "mode")
        rule = {"scheme": "quotient and remainder rows by murmur3"}
        return rule | {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        text = f"{self.dim}, num_buckets={self.num_buckets}, num_remainders={self.num_remainders}"
        text += f", mode={self.mode!r}, seed={self.seed}"
        text += ", include_last_offset=True" if self.include_last_offset else ""
        return text + (", prehashed=True" if self.prehashed else "")


def _check_ids(module: str, ids: Any) -> None:
    """Strings want to be hashed first, which PyTorch's own message does not say."""
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"{module}: argument 'ids': wanted an int64 tensor, got {type(ids).__name__}; for "
            f"strings make the module with prehashed=True and give it hash_strings(strings)"
        )


class HashedParameters(_HashRule):
    """The four tables. Each starts as N(0, 1 / (4 dim)), so an id's vector has a norm of about 1.

    An id's vector is the sum of one row of each table.
    """

    def __init__(
        self,
        dim: int,
        num_buckets: int = 2**32,
        num_remainders: int = 1000,
        mode: str = "sum",
        seed: int = 0,
        include_last_offset: bool = False,
        prehashed: bool = False,
        sparse: bool | Literal["always"] = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(type(self).__name__, dim=dim)
        self._set_rule(num_buckets, num_remainders, mode, seed, include_last_offset, prehashed)
        if sparse not in (True, False, "always"):
            refuse(type(self).__name__, "sparse", 'True, False or "always"', repr(sparse))
        self.dim, self.sparse = dim, sparse
        quotients = -(-num_buckets // num_remainders)
        for name in TABLES:
            rows = quotients if name.startswith("quotient") else num_remainders
            table = torch.empty(rows, dim, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(table))
        use_huge_pages(self)  # before a page is touched, so that nothing has to be moved
        self.reset_parameters()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        use_huge_pages(self)  # the memory of a copied or loaded table has small pages

    def reset_parameters(self) -> None:
        for name in TABLES:
            nn.init.normal_(getattr(self, name), std=0.5 / math.sqrt(self.dim))

    def gives_sparse(self) -> bool:
        """Whether the gradients of the quotient tables are sparse here."""
        if self.sparse is not True:
            return bool(self.sparse)
        # DistributedDataParallel asks torch's own embeddings alone whether their gradients are
        # sparse, and fully_shard takes dense gradients only.
        return not in_a_group()

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.sparse is True else f", sparse={self.sparse!r}")


class HashedEmbeddingBag(HashedParameters):
    """Pooled embeddings of any int64 id, without a vocabulary; see ``hashed_embedding_bag``.

    With the default sizes, 2^32 buckets take 2 x 4,294,968 quotient rows and 2 x 1,000 remainder
    rows. Each table starts as N(0, 1 / (4 dim)), so that the sum of four rows has a norm of about
    1. Tables of 4 MiB and more lie on huge pages where Linux has them. These take no more memory,
    because every row is written at the start.

    Gradients of the quotient tables are sparse (``sparse=True``), because a dense gradient would be
    as large as the table, 1.1 GB at ``dim=64``. SGD, with momentum too, and Adagrad accept sparse
    gradients, and :func:`lirank_ext.nn.clip_grad_norm_` clips them. For Adam and AdamW, give the
    quotient tables to ``torch.optim.SparseAdam`` and the remainder tables, whose gradients are
    dense, to ``torch.optim.Adam``. Under ``torch.compile``, and where ``torch.distributed`` is
    initialized, all gradients are dense, because DistributedDataParallel and ``fully_shard`` take
    no sparse gradients of this module. ``sparse="always"`` is for code that adds up the sparse
    gradients of the processes itself.

    :func:`lirank_ext.nn.shard_rows` spreads the tables over processes by their rows.

    ``fuse`` of :class:`lirank_ext.training.RowwiseAdagrad` and of
    :class:`lirank_ext.training.TableSGD` lets the backward pass move the tables, without making
    gradients of them.

    Args:
        dim: width D.
        num_buckets: number of buckets for each half of a hash, 1 to 2^32.
        num_remainders: rows m of a remainder table. A quotient table has ceil(num_buckets / m).
        mode: "sum" or "mean".
        seed: seed of the hash.
        include_last_offset: the last offset is the end of the last bag.
        prehashed: the ids are already hashes, such as those of ``hash_strings``.
        sparse: sparse gradients for the quotient tables: True, False or "always".
        device, dtype: device and dtype of the tables.

    Raises:
        ValueError: a size, the seed or the mode is out of range.

    Examples:
        >>> bags = lirank_ext.nn.HashedEmbeddingBag(16, num_buckets=100_000, num_remainders=100)
        >>> bags(torch.tensor([7, -1, 2**62]), torch.tensor([0, 2])).shape  # two bags of any ids
        torch.Size([2, 16])
    """

    _fused: FusedOptimizer | None = None  # whose steps the backward pass takes
    _look_up: Callable[..., Tensor] | None = None  # look_up_and_move, where one is fused in

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, into which no optimizer is fused."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_fused", "_look_up")}

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """ids int64 or int32 (len,) with offsets (B,), (B, L) or (len,) without -> (B, dim)."""
        _check_ids(type(self).__name__, ids)
        refuse_weights(self, per_sample_weights)
        quotient_b = self.quotient_b  # a module looks for it in three places
        if type(quotient_b) is not nn.Parameter and is_sharded(self):
            return look_up_sharded(self, ids, offsets, per_sample_weights)
        if self._fused is not None and moves_in_backward(self):
            return self._look_up(self, ids, offsets, per_sample_weights)
        return hashed_embedding_bag(
            ids,
            offsets,
            quotient_b,
            self.remainder_b,
            self.quotient_c,
            self.remainder_c,
            self.num_buckets,
            self.seed,
            self.mode,
            per_sample_weights,
            self.include_last_offset and offsets is not None,
            self.prehashed,
            self.gives_sparse(),
        )

    def quantize(self, bits: int = 8) -> QuantizedHashedEmbeddingBag:
        """The same look-up over int8 or int4 rows, for serving.

        Raises:
            ValueError: ``bits`` is neither 8 nor 4, or a row is not finite.
        """
        return QuantizedHashedEmbeddingBag.from_float(self, bits)


class QuantizedHashedEmbeddingBag(_HashRule, FollowsDtype):
    """:class:`HashedEmbeddingBag` over packed rows, for serving; made by its ``quantize``.

    The buffers ``quotient_b``, ``remainder_b``, ``quotient_c`` and ``remainder_c`` are uint8 tables
    in the layout of ``pack_rows``. ``forward`` takes the same arguments as the float module's. The
    result has the dtype of the float module, or the dtype that this module was last moved to.
    """

    quotient_b: Tensor
    remainder_b: Tensor
    quotient_c: Tensor
    remainder_c: Tensor

    def __init__(
        self,
        dim: int,
        tables: dict[str, Tensor],
        num_buckets: int,
        bits: int = 8,
        mode: str = "sum",
        seed: int = 0,
        include_last_offset: bool = False,
        prehashed: bool = False,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_positive(type(self).__name__, dim=dim)
        remainders = len(tables["remainder_b"])
        self._set_rule(num_buckets, remainders, mode, seed, include_last_offset, prehashed)
        self.dim, self.bits = dim, bits
        for name in TABLES:
            self.register_buffer(name, tables[name])
        self.follow(output_dtype)

    @classmethod
    def from_float(cls, module: HashedParameters, bits: int = 8) -> QuantizedHashedEmbeddingBag:
        """Quantize the four tables row by row.

        Raises:
            ValueError: ``bits`` is neither 8 nor 4, or a row is not finite.
        """
        if bits not in (4, 8):
            refuse(f"{cls.__name__}.from_float", "bits", "8 or 4", bits)
        tables = {name: packed_weight(getattr(module, name), bits) for name in TABLES}
        options = (module.mode, module.seed, module.include_last_offset, module.prehashed)
        dtype = module.quotient_b.dtype
        return cls(module.dim, tables, module.num_buckets, bits, *options, dtype)

    @classmethod
    def empty(
        cls,
        dim: int,
        num_buckets: int = 2**32,
        num_remainders: int = 1000,
        bits: int = 8,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> QuantizedHashedEmbeddingBag:
        """Tables of zeros to load a state dict into, without float tables.

        Args:
            dim, num_buckets, num_remainders: sizes, as in :class:`HashedEmbeddingBag`.
            bits: 8 or 4.
            dtype: of the results.
            device: of the tables. On "meta" they take no memory; load with ``assign=True`` then.
            options: ``mode``, ``seed``, ``include_last_offset`` and ``prehashed``.
        """
        check_positive(cls.__name__, num_buckets=num_buckets, num_remainders=num_remainders)
        rows = (-(-num_buckets // num_remainders), num_remainders) * 2
        tables = {
            name: empty_table(n, dim, bits, device) for name, n in zip(TABLES, rows, strict=True)
        }
        return cls(dim, tables, num_buckets, bits, output_dtype=dtype, **options)

    def dequantize(self) -> HashedEmbeddingBag:
        """A float module whose tables hold the dequantized values."""
        options = (self.mode, self.seed, self.include_last_offset, self.prehashed)
        made = HashedEmbeddingBag(
            self.dim, self.num_buckets, self.num_remainders, *options, device="meta"
        )
        for name in TABLES:
            table = dequantize_rows(*unpack_rows(getattr(self, name), self.dim, self.bits))
            setattr(made, name, nn.Parameter(table.to(self.output_dtype)))
        return made

    def meaning(self) -> dict[str, Any]:
        return {**super().meaning(), "rows_scheme": SCHEME, "bits": self.bits}

    def requires_grad_(self, requires_grad: bool = True) -> nn.Module:
        refuse_training(self, requires_grad)
        return self

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """ids int64 or int32 (len,) with offsets (B,), (B, L) or (len,) without -> (B, dim)."""
        _check_ids(type(self).__name__, ids)
        refuse_weights(self, per_sample_weights)
        return quantized_hashed_embedding_bag(
            ids,
            offsets,
            self.quotient_b,
            self.remainder_b,
            self.quotient_c,
            self.remainder_c,
            self.num_buckets,
            self.dim,
            self.bits,
            self.seed,
            self.mode,
            per_sample_weights,
            self.include_last_offset and offsets is not None,
            self.prehashed,
            self.output_dtype,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"
