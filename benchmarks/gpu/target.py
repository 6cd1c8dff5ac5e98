"""One op on one shape of a GPU, its floor, and everything else that can compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Replays rotate among input sets of this many bytes in all: the L2 cache of an H100 is 50 MB.
ROTATED_BYTES = 160 << 20


@dataclass
class Target:
    """One op on one shape.

    Attributes:
        op: name of the op.
        label: the shape in words.
        sets: input sets of equal shapes; a captured graph calls each once, so that a replay does
            not find its inputs in the cache.
        ours: computes the result from one set.
        expect: computes it in float64 (integers as they are) from one set.
        tolerance: allowed error relative to the largest magnitude of each result.
        bytes: bytes that must move: each input read once, each result written once.
        flops: additions and multiplications of matrix products.
        exps: exponentials that the formula needs.
        peers: other implementations, each computing the same from one set.
        compiled: other implementations that are made by ``torch.compile``, as functions that make
            them, so that compiling starts when ours has been timed.
        floors: what computes less than the op, such as its bare matrix products; not compared.
        captured: whether the op can be captured in a CUDA graph.
    """

    op: str
    label: str
    sets: list[tuple]
    ours: Callable[..., Any]
    expect: Callable[..., Any]
    tolerance: float = 1e-4
    bytes: int = 0
    flops: int = 0
    exps: int = 0
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    compiled: dict[str, Callable[[], Callable[..., Any]]] = field(default_factory=dict)
    floors: dict[str, Callable[..., Any]] = field(default_factory=dict)
    captured: bool = True


@dataclass(frozen=True)
class Place:
    """Where targets are made, and how large: ``scale`` divides the sizes (tests take 64)."""

    device: str = "cuda"
    scale: int = 1

    def size(self, n: int, least: int = 1) -> int:
        return max(least, n // self.scale)

    def copies(self, nbytes: int) -> int:
        """How many input sets of so many bytes a replay rotates among."""
        if self.device == "cpu":
            return 2
        return max(2, min(24, ROTATED_BYTES // max(nbytes, 1) + 1))

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def randn(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = self.generator(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def integers(self, low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator(seed), device=self.device)

    def zipf(self, rows: int, count: int, exponent: float, seed: int = 0) -> Tensor:
        """Ids with this exponent; the ranks are scattered over the table."""
        ranks = torch.arange(1, rows + 1, device=self.device, dtype=torch.float64)
        share = ranks.pow(-exponent).cumsum(0)
        drawn = torch.rand(
            count, generator=self.generator(seed), device=self.device, dtype=torch.float64
        )
        ids = torch.searchsorted(share, drawn * share[-1]).clamp(max=rows - 1)
        return ids * 2654435761 % rows
