"""What was built, and what is in use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import re
from pathlib import Path

import torch

from .._version import __version__
from . import gpu
from .load import extension, why_no_extension
from .op import OPS


def build_info() -> dict[str, str]:
    """Versions and capabilities as text.

    Returns:
        dict with ``version``, ``torch_built_for`` and ``torch_running``, ``cpu`` (instruction
        set in use, or why the references serve), ``cuda`` (architectures built, or why not),
        ``triton`` (version and whether a GPU is there to use it, or why not), ``gpu`` (its
        name, or why there is none).
    """
    return {
        "version": __version__,
        "torch_built_for": extension.built_for_torch if extension else "nothing compiled",
        "torch_running": torch.__version__,
        "cpu": extension.isa() if extension else f"references only ({why_no_extension})",
        "cuda": _cuda_library(),
        "triton": _triton(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else why_no_gpu(),
    }


def why_no_gpu() -> str:
    """Why PyTorch has no CUDA device here, in words; empty where it has one."""
    if torch.cuda.is_available():
        return ""
    return "this PyTorch is a CPU build" if torch.version.cuda is None else "no CUDA device"


CUDA_LIBRARY = Path(__file__).parent.parent / "liblirank_cuda.so"


def _cuda_library() -> str:
    """Compiled CUDA kernels and for which GPUs, or why there are none."""
    if not CUDA_LIBRARY.is_file():
        return "not built: that needs nvcc when the package is installed"
    without = why_no_gpu()
    text = f"built for {', '.join(architectures(CUDA_LIBRARY))}"
    return f"{text}; unused: {without}" if without else text


def architectures(library: Path) -> list[str]:
    """The GPU architectures in a built library, such as ``sm_90``, without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"lirank_ext was built for CUDA architectures ([0-9a-z ]+)", data)
        return [f"sm_{a}" for a in found[1].decode().split()] if found else ["unknown GPUs"]


def gpu_ops() -> dict[str, str]:
    """What computes each op where its tensors lie on a GPU, in words.

    On a machine without one: what would, with this installation.
    """
    return {name: _on_gpu(name) for name, op in OPS.items() if not op.internal}


def _on_gpu(name: str) -> str:
    gradients = [g for g in OPS if g.startswith(f"{name}_backward")]
    by, backward = _served_by(name), sorted({_served_by(g) for g in gradients})
    if not backward or backward == [by]:
        return by
    return f"{by}; gradients: {' and '.join(backward)}"


def _served_by(name: str) -> str:
    if torch.version.cuda is not None:
        by = gpu.backend(name)
    else:
        there = {"cuda": CUDA_LIBRARY.is_file(), "triton": _has_triton()}
        by = next((b for b in gpu.KERNELS.get(name, ()) if there[b]), None)
    words = {"cuda": "CUDA kernel", "triton": "Triton kernel"}
    return words.get(by, "plain PyTorch, slower" + _missing(name))


def _missing(name: str) -> str:
    """What would have to be there for a kernel."""
    if not gpu.KERNELS.get(name):
        return ": there is no kernel"
    needs = {"cuda": "nvcc when the package is installed", "triton": "Triton"}
    return ": a kernel needs " + " or ".join(needs[by] for by in gpu.KERNELS[name])


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton() -> str:
    if not _has_triton():
        return "not installed"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # nightly builds go by another name
        version = "installed"
    without = why_no_gpu()
    return f"{version}, unused: {without}" if without else version


def why_absent(backend: str) -> str:
    """Why a backend does not serve an op here, in words.

    Args:
        backend: ``"cpu"``, ``"triton"`` or ``"cuda"``.
    """
    if backend == "cpu":
        return why_no_extension or "this op has no C++ kernel"
    if why_no_gpu():
        return why_no_gpu()
    if backend == "triton":
        return "this op has no Triton kernel" if _has_triton() else "Triton is not installed"
    return "this op has no CUDA kernel" if CUDA_LIBRARY.is_file() else _cuda_library()
