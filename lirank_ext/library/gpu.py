"""Registers the implementation of an op on CUDA tensors.

Each op has one. If liblirank_cuda.so has a CUDA kernel for the op, the library registers it when it
is loaded. Otherwise the Triton launcher is registered here. The launcher is a plain function in
``kernels/``, in a file of the same name as the op's, that has the name of the op and takes the
checked call. It is looked up at the first call of the op, so a CPU installation needs no Triton and
importing the package does not load it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .op import Op

# A check takes 20 to 30 us of Python, comparing signatures 3: serving repeats a few shapes.
MOST_SIGNATURES = 1024

_launched: set[str] = set()  # ops that use ``launcher`` on CUDA tensors


def register(library: torch.library.Library, op: Op) -> None:
    """Register the op's Triton launcher if Triton is installed and there is no CUDA kernel."""
    if torch.version.cuda is None or not has_triton() or has_cuda_kernel(op.name):
        return
    library.impl(op.name, launcher(op), "CUDA")
    _launched.add(op.name)


def backend(op: Op) -> str | None:
    """The op's backend on CUDA tensors: ``"cuda"``, ``"triton"``, or None for the reference."""
    if op.name in _launched:
        return "triton" if has_launcher(op) else None
    return "cuda" if has_cuda_kernel(op.name) else None


def has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{name}", "CUDA")


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_launcher(op: Op) -> bool:
    """Whether Triton is installed and ``kernels/`` has a launcher for this op."""
    return has_triton() and _launcher(op.module, op.family, op.name) is not None


@cache
def _launcher(module: str, family: str, name: str) -> Callable[[Any], Any] | None:
    """From the file of ``kernels/`` that is named like the op's own, or like its family."""
    for file in dict.fromkeys((module, family)):
        path = f"lirank_ext.kernels.{file}"
        if importlib.util.find_spec(path) is not None:
            launcher = getattr(importlib.import_module(path), name, None)
            if launcher is not None:
                return launcher
    return None


def launcher(op: Op) -> Callable[..., Any]:
    """The op on CUDA tensors. It checks the call and runs the launcher on the tensors' device.

    If the op has no launcher, it runs the reference.
    """

    accepted: set[tuple] = set()  # signatures of calls that passed the op's check

    def launch(*args: Any, **kwargs: Any) -> Any:
        run = _launcher(op.module, op.family, op.name)
        if run is None:
            return op.reference(*args, **kwargs)
        a = op.call(*args, **kwargs)
        signature = _signature(a)
        # The check of an op that changes tensors also looks at their strides.
        if op.mutated or signature not in accepted:
            op._check(a)
            if len(accepted) >= MOST_SIGNATURES:
                accepted.clear()
            accepted.add(signature)
        index = _device_index(a)
        if index is None or index == torch.cuda.current_device():
            return run(a)
        with torch.cuda.device(index):
            return run(a)

    return launch


def _signature(values: Iterable[Any]) -> tuple:
    """All that a check may look at: shapes, dtypes, devices and numbers."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found += (value.shape, value.dtype, value.device)
        elif isinstance(value, (list, tuple)):
            found.append(_signature(value))
        else:
            found.append(value)
    return tuple(found)


def _device_index(values: Iterable[Any]) -> int | None:
    """The device of the first CUDA tensor.

    It must be made current, because Triton launches on torch's current device and stream.
    """
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_cuda:
                return value.get_device()
        elif isinstance(value, (list, tuple)):
            index = _device_index(value)
            if index is not None:
                return index
    return None
