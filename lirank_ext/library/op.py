"""Registers every op with PyTorch.

The dispatcher is the only switch: CPU tensors reach the C++ kernel, CUDA tensors the
CUDA or Triton kernel, meta tensors the fake kernel, and everything else (or everything,
where no library is built) the reference. Nothing chooses a backend at call time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import autograd, gpu
from .load import extension, library


@dataclass(frozen=True)
class Op:
    """One registered op: its schema, its definition (``reference``) and its family."""

    name: str
    schema: str
    stem: str
    reference: Callable[..., Any]
    differentiable: bool
    internal: bool

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.lirank, self.name).default


OPS: dict[str, Op] = {}


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    internal: bool = False,
    stem: str | None = None,
) -> torch._ops.OpOverload:
    """Define ``lirank::<schema>`` (unless C++ has), its fake kernel, backward and reference.

    ``internal`` marks ops that users do not call (backward kernels). ``stem`` is the family;
    without it, the name of the module that holds the reference. Returns the default overload.
    """
    name = schema.split("(", 1)[0]
    if extension is None:
        library.define(schema)
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lirank::{name}", fake, lib=library)
    if backward is not None:
        autograd.register(library, name, setup_context, backward)
    stem = stem or reference.__module__.rsplit(".", 1)[-1]
    gpu.register_triton(library, name, stem)
    op = OPS[name] = Op(name, schema, stem, reference, backward is not None, internal)
    return op.overload


def implementations(op_name: str) -> dict[str, Callable[..., Any]]:
    """The usable backends of one op.

    Args:
        op_name: name without namespace, such as ``"low_rank_cross"``.

    Returns:
        ``{"reference": f, "cpu": f, "triton": f, "cuda": f}``, holding only those that can
        run here. Every callable takes the op's own arguments.

    Raises:
        ValueError: no op of that name.
    """
    if op_name not in OPS:
        known = ", ".join(name for name, op in OPS.items() if not op.internal)
        raise ValueError(f"implementations: no op named '{op_name}'; there are: {known}")
    op = OPS[op_name]
    found: dict[str, Callable[..., Any]] = {"reference": op.reference}
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{op_name}", "CPU"):
        found["cpu"] = op.overload
    on_gpu = gpu.backend(op_name)
    if on_gpu and torch.cuda.is_available():
        found[on_gpu] = op.overload
    return found


def index_error(error: RuntimeError) -> Exception:
    """IndexError where the op's RuntimeError reports an index out of range."""
    return IndexError(str(error)) if "out of range" in str(error) else error
