"""Bags of ids, as ``torch.nn.functional.embedding_bag`` takes them: read, checked and pooled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..library.checks import (
    check,
    check_device,
    check_dim,
    check_floating,
    check_index_dtype,
    free_size,
)


class Bags(NamedTuple):
    """The ids of one call and how they fall into bags.

    Attributes:
        ids: (len,), or (B, L) without offsets.
        offsets: where each bag begins: (B,), or (B + 1,) with ``include_last``; or None.
        include_last: ``offsets`` ends with the end of the last bag.
        mode: "sum" or "mean".
        weights: shape of ``ids``, or None.
    """

    ids: Tensor
    offsets: Tensor | None
    include_last: bool = False
    mode: str = "sum"
    weights: Tensor | None = None

    @staticmethod
    def of(a: Any) -> Bags:
        """Those of a call, whose ids are named ``ids`` or ``indices``.

        An op without the argument ``include_last_offset`` has the last offset always. One without
        ``mode`` may have ``mean`` in its place.
        """
        mode = "mean" if getattr(a, "mean", False) else "sum"
        return Bags(
            getattr(a, _ids_name(a)),
            a.offsets,
            getattr(a, "include_last_offset", True),
            getattr(a, "mode", mode),
            getattr(a, "per_sample_weights", None),
        )

    def count(self) -> int:
        if self.offsets is None:
            return self.ids.shape[0]
        return self.offsets.shape[0] - int(self.include_last)

    def size_of_result(self) -> int:
        """The number of bags as a size in a fake kernel."""
        return free_size(self.count()) if self.include_last else self.count()

    def of_each_id(self) -> Tensor:
        """The bag of every id, in order; -1 behind the last bag."""
        ids = self.ids
        position = torch.arange(ids.numel(), device=ids.device)
        if self.offsets is None:
            return position // max(1, ids.shape[1] if ids.dim() == 2 else 1)
        bag = torch.searchsorted(self.offsets.long(), position, right=True) - 1
        return torch.where(bag < self.count(), bag, -1)

    def pool(self, rows: Tensor) -> Tensor:
        """Sum (mean) the row of every id into its bag."""
        return pool(rows, self.of_each_id(), self.count(), self.mode, self.weights)

    def sizes(self, keep: Tensor) -> Tensor:
        """(B,): how many ids of each bag are kept."""
        if self.offsets is None:
            return keep.sum(1)
        bag, count = self.of_each_id(), self.count()
        bag = torch.where(bag >= 0, bag, count)
        return bag.new_zeros(count + 1).scatter_add(0, bag, keep.long())[:count]

    def largest(self, rows: Tensor, keep: Tensor | None) -> Tensor:
        """The largest value of each column among the rows of a bag; zeros for a bag without any."""
        bag, count = self.of_each_id(), self.count()
        bag = torch.where(bag >= 0, bag, count)
        if keep is not None:
            bag = torch.where(keep.reshape(-1), bag, count)
        out = rows.new_full((count + 1, rows.shape[1]), -torch.inf)
        index = bag.unsqueeze(1).expand_as(rows)
        out = out.scatter_reduce(0, index, rows, "amax")[:count]
        return torch.where(out == -torch.inf, 0.0, out)


def pool(rows: Tensor, bag: Tensor, count: int, mode: str, weights: Tensor | None) -> Tensor:
    """Sum (mean) every row into its bag of ``count``; -1 is no bag."""
    keep = bag >= 0
    rows, bag = rows[keep], bag[keep]
    if weights is not None:
        rows = rows * weights.reshape(-1)[keep].unsqueeze(1).to(rows.dtype)
    out = rows.new_zeros(count, rows.shape[1]).index_add(0, bag, rows)
    if mode == "mean":
        out = out / torch.bincount(bag, minlength=count).clamp(min=1).unsqueeze(1)
    return out


def _ids_name(a: Any) -> str:
    return "ids" if "ids" in type(a)._fields else "indices"


def check_bags(a: Any, device: torch.device) -> None:
    """Shapes, dtypes and mode of a call's bags; :func:`check_offsets` looks at the numbers."""
    ids, name = Bags.of(a), _ids_name(a)
    check(ids.mode in ("sum", "mean"), a, "mode", "'sum' or 'mean'", repr(ids.mode))
    fits = ids.weights is None or ids.mode == "sum"
    check(fits, a, "per_sample_weights", "mode 'sum' with weights", repr(ids.mode))
    check_device(a, name, device)
    if ids.offsets is not None:
        check_dim(a, name, 1)
        check_index_dtype(a, "offsets")
        check_dim(a, "offsets", 1)
        check_device(a, "offsets", device)
        fits = not ids.include_last or ids.offsets.shape[0] > 0
        check(fits, a, "offsets", "at least one with include_last_offset")
    else:
        check(ids.ids.dim() in (1, 2), a, name, "1 or 2 dimensions without offsets")
        check(not ids.include_last, a, "include_last_offset", "offsets with it", None)
    if ids.weights is not None:
        check_floating(a, "per_sample_weights")
        check_device(a, "per_sample_weights", device)
        wanted = f"the shape of {name} {tuple(ids.ids.shape)}"
        check(ids.weights.shape == ids.ids.shape, a, "per_sample_weights", wanted)


def check_offsets(op: str, bags: Bags, name: str) -> None:
    """Offsets rise from 0 to at most the number of ids, which the op calls ``name``."""
    if bags.offsets is None or bags.offsets.numel() == 0:
        return
    o, used = bags.offsets.long(), bags.ids.numel()
    if torch.compiler.is_compiling():  # a graph cannot branch on the numbers
        rising = (o[:1] == 0).all() & (o == o.cummax(0)[0]).all() & (o[-1:] <= used).all()
        wanted = (
            f"lirank::{op}: argument 'offsets': wanted 0 first, no decrease and at most the number"
        )
        return torch._assert_async(rising, f"{wanted} of {name}")
    check(int(o[0]) == 0, op, "offsets", "0 first", int(o[0]))
    falls = (o.diff() < 0).nonzero()
    if falls.numel():
        at = int(falls[0]) + 1
        got = f"{int(o[at])} after {int(o[at - 1])} at position {at}"
        check(False, op, "offsets", "no decrease", got)
    text = f"at most {used} (the number of {name})"
    check(int(o[-1]) <= used, op, "offsets", text, f"{int(o[-1])} at position {len(o) - 1}")
