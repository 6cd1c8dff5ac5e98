"""Reports which libraries were built and which kernels are in use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import re
from pathlib import Path

import torch

from .._version import __version__
from . import gpu
from .load import PACKAGE, extension, why_no_extension
from .op import OPS, Op


def build_info() -> dict[str, str]:
    """Versions and capabilities as text.

    Returns:
        A dict with ``version``, ``torch_built_for``, ``torch_running``, ``cpu`` (the instruction
        set in use, or why the references are used), ``cuda`` (the GPU architectures it was built
        for, or why it was not built), ``triton`` (its version and why it is unused, if it is) and
        ``gpu`` (its name, or why there is none).
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


def library_path() -> Path:
    """The shared library to load in a process without Python, such as by ``dlopen``.

    It registers the ops and their CPU kernels with libtorch, which the process must link.
    ``liblirank_cuda.so`` beside it, where it was built, holds the CUDA kernels.

    Raises:
        RuntimeError: nothing was compiled; the message says why.
    """
    if extension is None:
        raise RuntimeError(f"library_path: there is no compiled library: {why_no_extension}")
    return PACKAGE / "liblirank.so"


def why_no_gpu() -> str:
    """Why PyTorch has no CUDA device here, in words, or "" if it has one."""
    if torch.cuda.is_available():
        return ""
    return "this PyTorch is a CPU build" if torch.version.cuda is None else "no CUDA device"


CUDA_LIBRARY = Path(__file__).parent.parent / "liblirank_cuda.so"


def _cuda_library() -> str:
    """The GPUs that the CUDA kernels were built for, or why there are none."""
    if not CUDA_LIBRARY.is_file():
        return "not built: that needs nvcc and a PyTorch with CUDA when the package is installed"
    without = why_no_gpu()
    text = f"built for {', '.join(architectures(CUDA_LIBRARY))}"
    return f"{text}; unused: {without}" if without else text


def architectures(library: Path) -> list[str]:
    """The GPU architectures in a built library, such as ``sm_90``, read without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"lirank_ext was built for CUDA architectures ([0-9a-z ]+)", data)
        return [f"sm_{a}" for a in found[1].decode().split()] if found else ["unknown GPUs"]


def gpu_ops() -> dict[str, str]:
    """Which kernel computes each op on GPU tensors, in words.

    Without a GPU, it tells which kernel this installation would use.
    """
    return {name: _on_gpu(name) for name, op in OPS.items() if not op.internal}


def _on_gpu(name: str) -> str:
    gradients = [g for g in OPS if g.startswith(f"{name}_backward")]
    by, backward = _served_by(OPS[name]), sorted({_served_by(OPS[g]) for g in gradients})
    if not backward or backward == [by]:
        return by
    return f"{by}; gradients: {' and '.join(backward)}"


def _served_by(op: Op) -> str:
    words = {"cuda": "CUDA kernel", "triton": "Triton kernel"}
    return words.get(planned_backend(op), "plain PyTorch, slower" + _missing())


def planned_backend(op: Op) -> str | None:
    """The backend that this installation uses, or would use, on a GPU.

    Returns:
        ``"cuda"``, ``"triton"``, or None for the reference.
    """
    if torch.version.cuda is not None:
        return gpu.backend(op)
    if op.name in _cuda_names():
        return "cuda"
    return "triton" if gpu.has_launcher(op) else None


def _cuda_names() -> set[str]:
    """The names of the ops that liblirank_cuda.so registers, read without loading it."""
    if not CUDA_LIBRARY.is_file():
        return set()
    with CUDA_LIBRARY.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as d:
        return {name for name in OPS if d.find(name.encode() + b"\0") >= 0}


def _missing() -> str:
    """What to install to get a kernel, in words."""
    if gpu.has_triton():
        return ": there is no kernel"
    without_library = "" if CUDA_LIBRARY.is_file() else ", or nvcc when the package is installed"
    return f": a kernel needs Triton{without_library}"


def _triton() -> str:
    if not gpu.has_triton():
        return "not installed"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # nightly builds have another package name
        version = "installed"
    without = why_no_gpu()
    return f"{version}, unused: {without}" if without else version


def why_absent(backend: str) -> str:
    """Why a backend is not available for an op here, in words.

    Args:
        backend: ``"cpu"``, ``"triton"`` or ``"cuda"``.
    """
    if backend == "cpu":
        return why_no_extension or "this op has no C++ kernel"
    if why_no_gpu():
        return why_no_gpu()
    if backend == "triton":
        return "this op has no Triton kernel" if gpu.has_triton() else "Triton is not installed"
    return "this op has no CUDA kernel" if CUDA_LIBRARY.is_file() else _cuda_library()
