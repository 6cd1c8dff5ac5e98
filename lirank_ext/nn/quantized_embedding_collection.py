"""Several row-wise quantized tables behind one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..library.huge_pages import use_huge_pages
from ..ops.quantized_embedding import concatenate_tables, quantized_embedding_bags
from ._tagged import Tagged
from .quantized_embedding import (
    SCHEME,
    FollowsDtype,
    QuantizedEmbeddingBag,
    empty_table,
    refuse_training,
)


class QuantizedEmbeddingBagCollection(Tagged, FollowsDtype):
    """Several tables in one look-up call, with their results side by side.

    ``forward(indices, offsets, per_sample_weights=None)`` takes the indices of all tables, one
    table after the other, and ``offsets`` (T * B + 1,), where bag b of table t has position
    ``t * B + b``. It returns (B, sum of widths) in the dtype of the float modules, or in the dtype
    that this module was last moved to.
    """

    packed: Tensor
    rows: Tensor
    dims: Tensor

    def __init__(
        self,
        names: Sequence[str],
        tables: Sequence[Tensor],
        dims: Sequence[int],
        bits: int,
        mode: str,
        output_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.names, self.bits, self.mode = list(names), bits, mode
        self.total_dim = sum(dims)
        self.shapes = [[len(t), dim] for t, dim in zip(tables, dims, strict=True)]
        self.register_buffer("packed", concatenate_tables(tables))
        use_huge_pages(self.packed)
        self.register_buffer("rows", torch.tensor([t.shape[0] for t in tables]))
        self.register_buffer("dims", torch.tensor(list(dims)))
        self.follow(output_dtype)

    @classmethod
    def empty(
        cls,
        sizes: Mapping[str, tuple[int, int]],
        bits: int = 8,
        *,
        mode: str = "sum",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> QuantizedEmbeddingBagCollection:
        """Tables of zeros ``{name: (rows, dim)}`` to load a state dict into."""
        tables = [empty_table(rows, dim, bits, device) for rows, dim in sizes.values()]
        dims = [dim for _, dim in sizes.values()]
        return cls(list(sizes), tables, dims, bits, mode, dtype)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        use_huge_pages(self.packed)

    def meaning(self) -> dict[str, Any]:
        tables = {"names": self.names, "shapes": self.shapes}
        return {"rows_scheme": SCHEME, "bits": self.bits, "mode": self.mode, **tables}

    @classmethod
    def from_float(
        cls, modules: Mapping[str, nn.Module], bits: int = 8
    ) -> QuantizedEmbeddingBagCollection:
        """Quantize ``{name: nn.EmbeddingBag}``. All must share a dtype and a mode, "sum" or "mean".

        Raises:
            ValueError: there is no table, modes or dtypes differ, or a table cannot be quantized.
        """
        made = {name: QuantizedEmbeddingBag.from_float(m, bits) for name, m in modules.items()}
        for name, m in made.items():
            if m.mode == "max" or m.padding_idx is not None:
                raise ValueError(
                    f"QuantizedEmbeddingBagCollection.from_float: '{name}': wanted mode 'sum' or "
                    f"'mean' and no padding_idx, got mode {m.mode!r} and {m.padding_idx}"
                )
        modes = {m.mode for m in made.values()}
        if len(modes) != 1:
            raise ValueError(
                "QuantizedEmbeddingBagCollection.from_float: modules: wanted at least one, all of "
                f"one mode, got modes {sorted(modes)}"
            )
        dtypes = {m.output_dtype for m in made.values()}
        if len(dtypes) != 1:
            raise ValueError(
                "QuantizedEmbeddingBagCollection.from_float: modules: wanted tables of one dtype, "
                f"got {sorted(map(str, dtypes))}"
            )
        tables = [m.packed for m in made.values()]
        dims = [m.embedding_dim for m in made.values()]
        return cls(list(made), tables, dims, bits, modes.pop(), dtypes.pop())

    def requires_grad_(self, requires_grad: bool = True) -> nn.Module:
        refuse_training(self, requires_grad)
        return self

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return quantized_embedding_bags(
            self.packed,
            self.rows,
            self.dims,
            indices,
            offsets,
            self.bits,
            self.mode,
            per_sample_weights,
            self.output_dtype,
            self.total_dim,
        )

    def extra_repr(self) -> str:
        return f"{self.names}, total_dim={self.total_dim}, bits={self.bits}, mode={self.mode!r}"
