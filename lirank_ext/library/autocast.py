"""What ops do under ``torch.autocast``.

Layers of matrix products run in autocast's lower precision, as ``torch.nn.functional.linear`` does.
A calibration runs in float32, as losses do, because its buckets are finer than a half-precision
logit. All other ops keep the dtypes of their arguments, as ``embedding_bag`` does: tables are read
as they are stored. Float64 is never cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .op import Op

Rule = Literal["lower", "float32"]
KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


def register(library: torch.library.Library, op: Op, rule: Rule) -> None:
    """Cast the floating arguments of an op under autocast.

    Args:
        library: the fragment of ``lirank`` that holds the registration.
        op: the op.
        rule: "lower" casts to the dtype of the autocast context, "float32" to float32.
    """
    for device, key in KEYS.items():
        excluded = torch._C.DispatchKeySet(key)

        def run(*args: Any, device: str = device, excluded: Any = excluded) -> Any:
            args = cast(args, device, rule)
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return op.overload(*args)

        library.impl(op.name, run, str(key).rpartition(".")[2])


def cast(args: Any, device: str, rule: Rule | None) -> Any:
    """The arguments as the op gets them under autocast."""
    if rule is None or not torch.is_autocast_enabled(device):
        return args
    dtype = torch.float32 if rule == "float32" else torch.get_autocast_dtype(device)
    made: dict[int, Tensor] = {}  # x stays x0 in a first layer

    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [one(v) for v in value]
        if not isinstance(value, Tensor) or value.device.type != device:
            return value
        if not value.is_floating_point() or value.dtype in (torch.float64, dtype):
            return value
        if id(value) not in made:
            made[id(value)] = value.to(dtype)
        return made[id(value)]

    return [one(value) for value in args]
