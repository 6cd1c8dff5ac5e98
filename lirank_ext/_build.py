"""What was built, and what is in use."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from ._library import extension, why_no_extension
from ._version import __version__


def build_info() -> dict[str, str]:
    """Versions and capabilities as text.

    Returns:
        dict with ``version``, ``torch_built_for`` and ``torch_running``, ``cpu`` (instruction
        set in use, or why the references serve), ``cuda`` (architectures built, or why not),
        ``triton`` (version or why not).
    """
    triton = importlib.util.find_spec("triton")
    return {
        "version": __version__,
        "torch_built_for": extension.built_for_torch if extension else "nothing compiled",
        "torch_running": torch.__version__,
        "cpu": extension.isa() if extension else f"references only ({why_no_extension})",
        "cuda": "not built: the package has no CUDA kernels yet",
        "triton": importlib.metadata.version("triton") if triton else "not installed",
    }
