"""What was built, and what is in use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import torch

from ._library import extension, why_no_extension
from ._version import __version__


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


def _cuda_library() -> str:
    """Compiled CUDA kernels, or why there are none."""
    if not (Path(__file__).parent / "liblirank_cuda.so").is_file():
        return "not built: that needs nvcc when the package is installed"
    without = why_no_gpu()
    return f"built, unused: {without}" if without else "built"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
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
        missing = importlib.util.find_spec("triton") is None
        return "Triton is not installed" if missing else "this op has no Triton kernel"
    return "this op has no CUDA kernel" if _cuda_library() == "built" else _cuda_library()
