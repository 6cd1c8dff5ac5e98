"""Inputs on which every op is checked: by ``verify``, and by the tests (opcheck, compile).

A family's module ``cases/<stem>.py`` holds ``cases(generator) -> list[Case]``. They are
written once, so that a user's ``verify`` and the test suite look at the same inputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Case:
    """One call of one op.

    Attributes:
        op: name of the op.
        label: what is particular about this input, in a few words.
        args: arguments in the order of the op's schema (float tensors in any float dtype).
        grad: positions in ``args`` whose gradients are checked; empty for forward only.
        exact: results must be bit-equal to the reference on the same (not upcast) inputs.
        raises: where set, the call must be refused with a message holding this text.
        tolerance: allowed error relative to the largest magnitude of the result, as a
            multiple of the working precision's epsilon (fp32 2^-23, bf16 2^-8, fp16 2^-11).
        big: too slow for opcheck and compile; run by ``verify`` only.
    """

    op: str
    label: str
    args: tuple[Any, ...]
    grad: tuple[int, ...] = ()
    exact: bool = False
    raises: str | None = None
    tolerance: float = 64.0
    big: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


STEMS = (
    "cross",
    "quantized_embedding",
    "isotonic",
    "hashed_embedding",
    "hashing",
    "static_vocabulary",
)


def all_cases(op: str | None = None, seed: int = 0) -> Iterator[Case]:
    """Every case of every family, or of one op; the same for the same seed."""
    for stem in STEMS:
        module = importlib.import_module(f"{__name__}.{stem}")
        generator = torch.Generator().manual_seed(seed)
        for case in module.cases(generator):
            if op is None or case.op == op:
                yield case
