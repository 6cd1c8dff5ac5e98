"""Which kernels serve an op's CUDA tensors, and how they are reached.

The table does not depend on the machine. One implementation is registered per op: the first
of its entry that is there. ``cuda`` is liblirank_cuda.so (``csrc/*_cuda.cpp``, ``kernels/*.cu``),
which registers itself when it is loaded; ``triton`` is a plain function of the op's name in
``kernels/<stem>.py``, imported at the op's first call, so that a CPU install needs no Triton and
importing the package loads none.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

TRITON = ("triton",)
BOTH = ("cuda", "triton")  # tables are gathers of bytes: CUDA where nvcc was there to build it

KERNELS: dict[str, tuple[str, ...]] = {
    "low_rank_cross": TRITON,
    "low_rank_cross_train": TRITON,
    "low_rank_cross_backward": TRITON,
    "outer_attention": TRITON,
    "outer_attention_backward": TRITON,
    "attention_cross": TRITON,
    "attention_cross_train": TRITON,
    "attention_cross_backward": TRITON,
    "residual_cross_net": TRITON,
    "isotonic_calibration": TRITON,
    "isotonic_calibration_backward": TRITON,
    "quantize_rows": BOTH,
    "dequantize_rows": BOTH,
    "pack_rows": BOTH,
    "unpack_rows": BOTH,
    "quantized_embedding_bag": BOTH,
    "quantized_embedding_bag_backward": BOTH,
    "quantized_embedding_bags": BOTH,
    "quantized_embedding_bags_backward": BOTH,
    "murmur_hash": BOTH,
    "hash_strings": BOTH,
    "vocabulary_lookup": TRITON,
    "hashed_embedding_bag": BOTH,
    "hashed_embedding_bag_backward": BOTH,
    "hashed_embedding_bag_backward_sparse": BOTH,
    "hashed_embedding_bag_backward_weights": BOTH,
    "hashed_embedding_bag_of_rows": BOTH,
    "quantized_hashed_embedding_bag": BOTH,
    "quantized_hashed_embedding_bag_backward": BOTH,
}


def register_triton(library: torch.library.Library, name: str, stem: str) -> None:
    """Give the op its Triton launcher, where the table has one and nothing better is there."""
    wanted = "triton" in KERNELS.get(name, ())
    if not wanted or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return
    if not has_cuda_kernel(name):
        library.impl(name, launcher(name, stem), "CUDA")
        _by_triton.add(name)


_by_triton: set[str] = set()


def backend(name: str) -> str | None:
    """``"cuda"``, ``"triton"``, or None where the reference serves CUDA tensors."""
    if name in _by_triton:
        return "triton"
    return "cuda" if has_cuda_kernel(name) else None


def has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{name}", "CUDA")


def launcher(name: str, stem: str) -> Callable[..., Any]:
    """The launcher ``kernels/<stem>.py`` has for this op, imported when it is called."""

    @cache
    def found() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"lirank_ext.kernels.{stem}"), name)

    def launch(*args: Any, **kwargs: Any) -> Any:
        index = _device_index(args)
        if index is None:
            index = _device_index(kwargs.values())
        if index is None or index == torch.cuda.current_device():
            return found()(*args, **kwargs)
        with torch.cuda.device(index):
            return found()(*args, **kwargs)

    return launch


def _device_index(values: Iterable[Any]) -> int | None:
    """Of the first CUDA tensor: Triton launches on torch's current device and stream."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_cuda:
                return value.get_device()
        elif isinstance(value, (list, tuple)):
            index = _device_index(value)
            if index is not None:
                return index
    return None
