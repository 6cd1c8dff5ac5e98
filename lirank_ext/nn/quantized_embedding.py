"""Embedding modules over row-wise quantized tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..library.huge_pages import use_huge_pages
from ..ops.bags import Bags, check_offsets
from ..ops.quantized_embedding import quantized_embedding_bag
from ..ops.quantized_embedding_layout import layout
from ..ops.quantized_embedding_rows import dequantize_rows, pack_rows, quantize_rows, unpack_rows
from ._common import check_choice, check_positive, refuse
from ._tagged import Tagged

if TYPE_CHECKING:
    from typing import Self

SCHEME = "middle-max"  # of the rows; see ``quantize_rows``


def refuse_training(module: nn.Module, wanted: bool) -> None:
    """Raise if a gradient is asked for: quantized tables have none."""
    if wanted:
        raise ValueError(
            f"{type(module).__name__}.requires_grad_: wanted False, got True: a quantized table "
            "cannot be trained; train the float module and quantize it again"
        )


def packed_weight(weight: Tensor, bits: int) -> Tensor:
    """Quantize and pack a table (N, D) of any floating dtype."""
    weight = weight.detach()
    if weight.dtype == torch.float64:
        weight = weight.float()
    return pack_rows(*quantize_rows(weight, bits), bits)


def empty_table(rows: int, dim: int, bits: int, device: torch.device | str | None = None) -> Tensor:
    """A packed table of zeros, for values that are loaded later."""
    check_positive("a quantized table", rows=rows, dim=dim)
    if bits not in (8, 4):
        refuse("a quantized table", "bits", "8 or 4", repr(bits))
    return torch.zeros(rows, layout(dim, bits).row_bytes, dtype=torch.uint8, device=device)


def packed_from_fbgemm(rows: Tensor) -> Tensor:
    """Convert FBGEMM fused 8-bit rows ``[D uint8 | fp32 scale | fp32 min]`` to a packed table.

    With ``code = q - 128`` and ``mid = min + 128 * scale`` the grid is the same. A row whose codes
    are all zero is constant. It keeps ``mid = min``, so that the constant is not rounded.
    """
    if rows.dtype != torch.uint8 or rows.dim() != 2 or rows.shape[1] <= 8:
        raise ValueError(
            "from_fbgemm: rows: wanted uint8 of shape (N, D + 8), "
            f"got {rows.dtype} {tuple(rows.shape)}"
        )
    pairs = rows[:, -8:].contiguous().view(torch.float32)
    scale, low = pairs[:, 0].contiguous(), pairs[:, 1]
    constant = (rows[:, :-8] == 0).all(1)
    shift = torch.where(constant, 0, 128).to(torch.uint8)
    codes = (rows[:, :-8] ^ shift.unsqueeze(1)).contiguous().view(torch.int8)
    return pack_rows(codes, scale, low + shift * scale)


def fbgemm_from_packed(packed: Tensor, dim: int) -> Tensor:
    """The inverse of :func:`packed_from_fbgemm`."""
    codes, scale, mid = unpack_rows(packed, dim)
    shift = torch.where((codes == 0).all(1), 0, 128).to(torch.uint8)
    pairs = torch.stack([scale, mid - shift * scale], 1).contiguous().view(torch.uint8)
    return torch.cat([codes.view(torch.uint8) ^ shift.unsqueeze(1), pairs], 1)


class FollowsDtype(nn.Module):
    """A look-up whose results follow the dtype of the model.

    ``module.to(dtype)`` does not change packed tables, which are bytes. An empty buffer follows the
    conversion instead and records the requested dtype. It is not saved.
    """

    _result: Tensor

    def follow(self, dtype: torch.dtype) -> None:
        self.register_buffer("_result", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def output_dtype(self) -> torch.dtype:
        """Dtype of the results: the float module's, or that of the last ``to(dtype)``."""
        return self._result.dtype


class _QuantizedTable(Tagged, FollowsDtype):
    """A packed table and its width. The modules below are based on it."""

    packed: Tensor

    def __init__(
        self,
        packed: Tensor,
        embedding_dim: int,
        bits: int,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _refuse_slice(type(self).__name__, packed, embedding_dim, bits)
        self.embedding_dim, self.bits = embedding_dim, bits
        self.register_buffer("packed", packed)
        self.follow(output_dtype)

    @classmethod
    def empty(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        bits: int = 8,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """A table of zeros to load a state dict into, without a float table.

        Args:
            num_embeddings, embedding_dim: sizes N and D.
            bits: 8 or 4.
            dtype: of the results.
            device: of the table. On "meta" it takes no memory; load with ``assign=True`` then.
            options: the other arguments of the constructor, such as ``mode``.
        """
        packed = empty_table(num_embeddings, embedding_dim, bits, device)
        return cls(packed, embedding_dim, bits, output_dtype=dtype, **options)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        use_huge_pages(self)  # the memory of a copied or loaded table has small pages

    def meaning(self) -> dict[str, Any]:
        rows, dim = self.num_embeddings, self.embedding_dim
        return {"rows_scheme": SCHEME, "bits": self.bits, "dim": dim, "rows": rows}

    @property
    def weight(self) -> Tensor:
        """The dequantized table, for code that reads ``module.weight``: a copy at every access."""
        return self.dequantize_weight().to(self.output_dtype)

    @property
    def num_embeddings(self) -> int:
        return self.packed.shape[0]

    def requires_grad_(self, requires_grad: bool = True) -> nn.Module:
        refuse_training(self, requires_grad)
        return self

    def dequantize_weight(self) -> Tensor:
        """The dequantized table, float32 (N, D)."""
        return dequantize_rows(*unpack_rows(self.packed, self.embedding_dim, self.bits))

    def to_fbgemm(self) -> Tensor:
        """FBGEMM's fused 8-bit rows, uint8 (N, D + 8), with the same codes on the same grid.

        Raises:
            ValueError: the table has 4 bits.
        """
        if self.bits != 8:
            raise ValueError(f"to_fbgemm: bits: wanted 8, got {self.bits}")
        return fbgemm_from_packed(self.packed, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


class QuantizedEmbedding(_QuantizedTable):
    """``torch.nn.Embedding`` over int8 or int4 rows, for inference.

    ``forward(input)``: int32 or int64 of any shape to ``(*input.shape, D)``, in the dtype that
    the module was made from or moved to.
    """

    def __init__(
        self,
        packed: Tensor,
        embedding_dim: int,
        bits: int,
        padding_idx: int | None = None,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(packed, embedding_dim, bits, output_dtype)
        self.padding_idx = padding_idx  # its row is looked up like any other; see ``dequantize``

    @classmethod
    def from_float(cls, module: nn.Embedding, bits: int = 8) -> QuantizedEmbedding:
        """Quantize an ``nn.Embedding``.

        ``max_norm`` is refused because it changes rows when they are read.

        Raises:
            ValueError: ``max_norm`` is set, or a row is not finite.
        """
        _refuse_max_norm("QuantizedEmbedding", module)
        packed, dtype = packed_weight(module.weight, bits), module.weight.dtype
        return cls(packed, module.embedding_dim, bits, module.padding_idx, dtype)

    @classmethod
    def from_fbgemm(cls, rows: Tensor) -> QuantizedEmbedding:
        """From FBGEMM fused 8-bit rows, uint8 (N, D + 8)."""
        return cls(packed_from_fbgemm(rows), rows.shape[1] - 8, 8)

    def dequantize(self) -> nn.Embedding:
        """A float module that holds the dequantized values and can be trained."""
        weight = self.dequantize_weight().to(self.output_dtype)
        return nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=self.padding_idx)

    def forward(self, input: Tensor) -> Tensor:
        out = quantized_embedding_bag(
            self.packed,
            input.reshape(-1),
            None,
            self.embedding_dim,
            self.bits,
            output_dtype=self.output_dtype,
        )
        return out.reshape(*input.shape, self.embedding_dim)


class QuantizedEmbeddingBag(_QuantizedTable):
    """``torch.nn.EmbeddingBag`` over int8 or int4 rows, for inference.

    ``forward(input, offsets=None, per_sample_weights=None)`` takes the same arguments: ``input``
    is (len,) with ``offsets`` (B,), or (B, L) without offsets. Modes "sum" and "mean" read a row
    once and hold none. Mode "max" holds the dequantized rows of all ids of the call.
    """

    def __init__(
        self,
        packed: Tensor,
        embedding_dim: int,
        bits: int,
        mode: str = "mean",
        include_last_offset: bool = False,
        output_dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(packed, embedding_dim, bits, output_dtype)
        check_choice(type(self).__name__, "mode", mode, ("sum", "mean", "max"))
        self.mode, self.include_last_offset = mode, include_last_offset
        # As nn.EmbeddingBag does, a negative number counts from the last row.
        from_end = padding_idx is not None and padding_idx < 0
        self.padding_idx = padding_idx + packed.shape[0] if from_end else padding_idx

    def meaning(self) -> dict[str, Any]:
        return {**super().meaning(), "mode": self.mode, "padding_idx": self.padding_idx}

    @classmethod
    def from_float(cls, module: nn.EmbeddingBag, bits: int = 8) -> QuantizedEmbeddingBag:
        """Quantize an ``nn.EmbeddingBag``.

        Raises:
            ValueError: ``max_norm`` is set, or a row is not finite.
        """
        _refuse_max_norm("QuantizedEmbeddingBag", module)
        packed, last = packed_weight(module.weight, bits), module.include_last_offset
        rest = (module.mode, last, module.weight.dtype, module.padding_idx)
        return cls(packed, module.embedding_dim, bits, *rest)

    @classmethod
    def from_fbgemm(
        cls, rows: Tensor, mode: str = "sum", include_last_offset: bool = False
    ) -> QuantizedEmbeddingBag:
        """From FBGEMM fused 8-bit rows, uint8 (N, D + 8)."""
        return cls(packed_from_fbgemm(rows), rows.shape[1] - 8, 8, mode, include_last_offset)

    def dequantize(self) -> nn.EmbeddingBag:
        """A float module that holds the dequantized values and can be trained."""
        return nn.EmbeddingBag.from_pretrained(
            self.dequantize_weight().to(self.output_dtype),
            freeze=False,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if offsets is None and input.dim() == 1:
            raise ValueError(
                "QuantizedEmbeddingBag: offsets: wanted offsets with input of one dimension, "
                "got None"
            )
        refuse_weights(self, per_sample_weights)
        last = self.include_last_offset and offsets is not None
        table = (self.embedding_dim, self.bits)
        if self.mode != "max" and self.padding_idx is None:
            rest = (self.mode, per_sample_weights, last, self.output_dtype)
            return quantized_embedding_bag(self.packed, input, offsets, *table, *rest)
        bags = Bags(input, offsets, last)
        keep = None if self.padding_idx is None else input != self.padding_idx
        if self.mode == "max":
            check_offsets("quantized_embedding_bag", bags, "indices")
            rows = quantized_embedding_bag(self.packed, input.reshape(-1), None, *table)
            return bags.largest(rows, keep).to(self.output_dtype)
        weights = keep.to(self.packed.device, torch.float32)
        if per_sample_weights is not None:
            weights = weights * per_sample_weights
        # A mean is rounded once, after the division: a sum of halves may leave their range.
        dtype = torch.float32 if self.mode == "mean" else self.output_dtype
        rest = ("sum", weights, last, dtype)
        out = quantized_embedding_bag(self.packed, input, offsets, *table, *rest)
        if self.mode == "mean":
            out = out / bags.sizes(keep).clamp(min=1).unsqueeze(1)
        return out.to(self.output_dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


def refuse_weights(module: nn.Module, weights: Tensor | None) -> None:
    if weights is not None and module.mode != "sum":
        wanted = "mode 'sum' with weights; for a mean, divide them by their sum in each bag"
        refuse(type(module).__name__, "per_sample_weights", wanted, f"mode {module.mode!r}")


def _refuse_slice(name: str, packed: Tensor, dim: int, bits: int) -> None:
    """``packed[:5]`` of a table whose scales stand behind all codes reads codes as scales."""
    whole = packed._base
    if whole is None or whole.dim() != 2 or packed.dim() != 2 or not layout(dim, bits).apart:
        return
    if whole.shape[1] == packed.shape[1] and whole.shape[0] != packed.shape[0]:
        got = f"{packed.shape[0]} of {whole.shape[0]} rows"
        refuse(name, "packed", "a whole table; slice_rows takes rows out of one", got)


def _refuse_max_norm(name: str, module: nn.Module) -> None:
    if getattr(module, "max_norm", None) is not None:
        raise ValueError(f"{name}.from_float: max_norm: wanted None, got {module.max_norm}")
