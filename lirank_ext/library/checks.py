"""Argument checks of the references, fake kernels and Triton launchers.

The messages are those of the C++ checks (``csrc/library/checks.h``):
``lirank::op: argument 'name': wanted ..., got ...``. ``a`` is the call, a named tuple that has the
name of the op. To check a value that is not an argument, pass the op's name and the value.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX = (torch.int32, torch.int64)

Call = Any  # a named tuple of arguments, or the name of the op
_ARGUMENT = object()  # means the argument of that name


def refuse(a: Call, argument: str, text: str, error: type[Exception] = ValueError) -> NoReturn:
    op = a if isinstance(a, str) else type(a).__name__
    raise error(f"lirank::{op}: argument '{argument}': {text}")


def check(condition: bool, a: Call, argument: str, wanted: str, got: Any = _ARGUMENT) -> None:
    """Raise a ValueError that names op and argument unless ``condition`` holds.

    What was got is written as C++ writes it: numbers by six digits, tensors by their shape.
    """
    if not condition:
        got = getattr(a, argument) if got is _ARGUMENT else got
        if isinstance(got, Tensor):
            got = (
                shape(got) if wanted.startswith(("shape ", "the shape ")) else f"shape {shape(got)}"
            )
        elif isinstance(got, float):
            got = f"{got:g}"
        refuse(a, argument, f"wanted {wanted}, got {got}")


def shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def check_floating(a: Call, argument: str, t: Tensor | None = None) -> None:
    t = getattr(a, argument) if t is None else t
    if t.dtype not in FLOATING:
        wanted = "wanted float32, float64, float16 or bfloat16"
        refuse(a, argument, f"{wanted}, got {t.dtype}", TypeError)


def check_dtype(a: Call, argument: str, wanted: torch.dtype, t: Tensor | None = None) -> None:
    t = getattr(a, argument) if t is None else t
    if t.dtype != wanted:
        refuse(a, argument, f"wanted dtype {wanted}, got {t.dtype}", TypeError)


def check_index_dtype(a: Call, argument: str) -> None:
    t = getattr(a, argument)
    if t.dtype not in INDEX:
        refuse(a, argument, f"wanted torch.int32 or torch.int64, got {t.dtype}", TypeError)


def result_dtype(a: Call) -> torch.dtype:
    """The dtype that a call asks for, float32 by default.

    None stands for the default: AOTInductor reads a default dtype as a number and refuses it.
    """
    return torch.float32 if a.output_dtype is None else a.output_dtype


def check_output_dtype(a: Call) -> None:
    if result_dtype(a) not in FLOATING:
        wanted = "wanted float32, float64, float16 or bfloat16"
        refuse(a, "output_dtype", f"{wanted}, got {a.output_dtype}", TypeError)


def check_dim(a: Call, argument: str, dims: int, t: Tensor | None = None) -> None:
    t = getattr(a, argument) if t is None else t
    check(t.dim() == dims, a, argument, f"{dims} dimensions", f"shape {shape(t)}")


def check_device(a: Call, argument: str, wanted: torch.device, t: Tensor | None = None) -> None:
    t = getattr(a, argument) if t is None else t
    check(t.device == wanted, a, argument, f"device {wanted}", t.device)


def free_size(size: int) -> int:
    """A size of a fake result that is computed from the shapes of the arguments.

    In an exported program it would leave the guard that it is not 1, so that one row were refused.
    """
    if not isinstance(size, torch.SymInt) or not torch.compiler.is_exporting():
        return size
    free = torch.library.get_ctx().new_dynamic_size()
    torch._check(free == size)
    return free
