"""Times the workloads that ``bench_<stem>.py`` states: ``python -m lirank_ext bench``.

Every provider of a workload is first compared with the float64 reference; one that disagrees
is not timed. Repeats are interleaved: each repeat calls every provider once, in an order that
rotates, so that a slow spell of the machine falls on all of them. A speed-up is the median of
the ratios taken within the repeats, not a ratio of medians.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

OURS = "lirank"
DIRECTIONS = ("forward", "backward", "step")
CEILINGS = ("copy", "gather", "fma", "exp")


@dataclass
class Workload:
    """One op on one shape, and everything that can compute it.

    Attributes:
        op: name of the op.
        label: the shape in words.
        providers: zero-argument closures over prepared inputs, by name; ``"lirank"`` is ours.
            Each returns a tensor or a sequence of tensors (gradients, in direction backward).
            Those of direction ``"forward"`` are called under ``torch.inference_mode()``.
        expect: computes the result in float64 (integers as they are). Without it the provider
            named ``"reference"`` is what the others must agree with.
        tolerance: allowed error relative to the largest magnitude of each result.
        bytes: bytes that must move, for GB/s.
        flops: additions plus multiplications, where ``ceiling`` is ``"fma"``.
        exps: exponentials of the plain formula, where ``ceiling`` is ``"exp"``.
        items: rows, keys or samples, for ns per item.
        unit: what an item is.
        ceiling: the limit of the machine that binds: ``"copy"`` and ``"gather"`` compare
            ``bytes``, ``"fma"`` compares ``flops``, ``"exp"`` compares ``exps``.
        gather: (bytes of a row, bytes of the table) of the bare loop behind ``"gather"``.
        direction: ``"forward"``, ``"backward"`` or ``"step"`` (forward and backward).
    """

    op: str
    label: str
    providers: dict[str, Callable[[], Any]]
    expect: Callable[[], Any] | None = None
    tolerance: float = 1e-4
    bytes: int = 0
    flops: int = 0
    items: int = 0
    unit: str = "row"
    ceiling: str = "copy"
    direction: str = "forward"
    exps: int = 0
    gather: tuple[int, int] = (64, 256 << 20)

    def __post_init__(self) -> None:
        if OURS not in self.providers:
            raise ValueError(f"Workload {self.op}: wanted a provider '{OURS}'")
        if self.expect is None and "reference" not in self.providers:
            raise ValueError(f"Workload {self.op}: wanted 'expect' or a provider 'reference'")
        if self.ceiling not in CEILINGS or self.direction not in DIRECTIONS:
            text = f"ceiling {self.ceiling!r}, direction {self.direction!r}"
            raise ValueError(f"Workload {self.op}: unknown {text}")
