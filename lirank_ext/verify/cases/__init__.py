"""Inputs on which every op is checked: by ``verify``, and by the tests (opcheck, compile).

A family's module ``cases/<family>.py`` holds ``cases(generator) -> list[Case]``. They are
written once, so that a user's ``verify`` and the test suite look at the same inputs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...library.op import OPS


@dataclass
class Case:
    """One call of one op.

    Attributes:
        op: name of the op.
        label: what is particular about this input, in a few words.
        args: arguments by name (float tensors in any float dtype), or a tuple in the order of
            the op's schema.
        grad: names, or positions, of the arguments whose gradients are checked; empty for
            forward only.
        exact: results must be bit-equal to the reference on the same (not upcast) inputs.
        raises: where set, the call must be refused with a message holding this text.
        tolerance: allowed error relative to the largest magnitude of a row of the result, as a
            multiple of the working precision's epsilon (fp32 2^-23, bf16 2^-8, fp16 2^-11).
        big: too slow for opcheck and compile; run by ``verify`` only.
    """

    op: str
    label: str
    args: dict[str, Any] | tuple[Any, ...]
    grad: tuple[str | int, ...] = ()
    exact: bool = False
    raises: str | None = None
    tolerance: float = 64.0
    big: bool = False

    @property
    def call(self) -> tuple[Any, ...]:
        """The arguments in the order of the schema, up to the last one given."""
        if isinstance(self.args, tuple):
            return self.args
        call = OPS[self.op].call(**self.args)
        return call[: 1 + max(map(call._fields.index, self.args))]

    @property
    def trained(self) -> tuple[int, ...]:
        """Where in ``call`` the arguments of ``grad`` are."""
        if all(isinstance(g, int) for g in self.grad):
            return self.grad
        return tuple(map(OPS[self.op].call._fields.index, self.grad))


OPTIONS = ("grad", "exact", "raises", "tolerance", "big")


def cases_of(op: str) -> Callable[..., Case]:
    """``case(label, *, grad=(), exact=False, ..., **args)`` for one op: see :class:`Case`."""
    return functools.partial(_case, op)


def _case(op: str, label: str, /, **given: Any) -> Case:
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    return Case(op, label, given, **options)


def all_cases(op: str | None = None, seed: int = 0) -> Iterator[Case]:
    """Every case of every family, or of one op; the same for the same seed."""
    families = {each.family for each in OPS.values()} if op is None else {OPS[op].family}
    for family in sorted(families):
        module = importlib.import_module(f"{__name__}.{family}")
        generator = torch.Generator().manual_seed(seed)
        for case in module.cases(generator):
            if op is None or case.op == op:
                yield case
