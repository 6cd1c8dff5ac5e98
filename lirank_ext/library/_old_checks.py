"""Argument checks of the references and fake kernels.

The text is the one that the C++ checks raise (``csrc/checks.h``):
``lirank::op: argument 'name': wanted ..., got ...``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX = (torch.int32, torch.int64)


def refuse(op: str, argument: str, text: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"lirank::{op}: argument '{argument}': {text}")


def check(condition: bool, op: str, argument: str, wanted: str, got: Any) -> None:
    """Raise ValueError naming op and argument unless ``condition`` holds."""
    if not condition:
        got = shape(got) if isinstance(got, Tensor) else got
        refuse(op, argument, f"wanted {wanted}, got {got}")


def shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def check_floating(op: str, argument: str, t: Tensor) -> None:
    if t.dtype not in FLOATING:
        wanted = "wanted float32, float64, float16 or bfloat16"
        refuse(op, argument, f"{wanted}, got {t.dtype}", TypeError)


def check_dtype(op: str, argument: str, t: Tensor, wanted: torch.dtype) -> None:
    if t.dtype != wanted:
        refuse(op, argument, f"wanted dtype {wanted}, got {t.dtype}", TypeError)


def check_index_dtype(op: str, argument: str, t: Tensor) -> None:
    if t.dtype not in INDEX:
        refuse(op, argument, f"wanted torch.int32 or torch.int64, got {t.dtype}", TypeError)


def check_dim(op: str, argument: str, t: Tensor, dims: int) -> None:
    check(t.dim() == dims, op, argument, f"{dims} dimensions", f"shape {shape(t)}")


def check_device(op: str, argument: str, t: Tensor, wanted: torch.device) -> None:
    check(t.device == wanted, op, argument, f"device {wanted}", t.device)
