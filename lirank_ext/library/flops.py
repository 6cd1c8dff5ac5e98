"""Numbers of floating-point operations, for ``torch.utils.flop_counter.FlopCounterMode``.

As PyTorch does, they count products of matrices alone, two operations for each multiply-add, by the
definition of an op: ``outer_attention`` may compute less by interpolation.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .op import Op

COUNTER = "torch.utils.flop_counter"
FORMULAS: dict[Op, Callable[[Any], int]] = {}


def register(op: Op, formula: Callable[[Any], int]) -> None:
    """Count an op by ``formula(a)``, where ``a`` is its call."""
    FORMULAS[op] = formula
    if COUNTER in sys.modules:
        _tell_counter(op)
    elif _Waiting not in map(type, sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _tell_counter(op: Op) -> None:
    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return FORMULAS[op](op.call(*args, **kwargs))

    packet = getattr(torch.ops.lirank, op.name)
    sys.modules[COUNTER].register_flop_formula(packet, get_raw=True)(count)


class _Waiting(importlib.abc.MetaPathFinder):
    """Tells the counter the formulas when it is imported.

    Importing it here would make ``import lirank_ext`` longer for all who count nothing.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_tell(module: Any) -> None:
            execute(module)
            for op in FORMULAS:
                _tell_counter(op)

        spec.loader.exec_module = then_tell  # type: ignore[method-assign]
        return spec
