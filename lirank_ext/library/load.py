"""Loads the compiled libraries. They register the C++ and CUDA kernels when they are loaded."""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

library = torch.library.Library("lirank", "FRAGMENT")


def source_folder() -> str:
    """What to do if the source folder was imported, in words, or "" if it was not.

    Python that is started in a checkout imports the sources there, not the installed package. The
    sources have no compiled part unless they were built in place.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / "setup.py").is_file():
        return ""
    return (
        f"the sources in {checkout} are not built and hide an installed package: run from another "
        "folder, or build them with 'python setup.py build_ext --inplace'"
    )


def _load() -> tuple[ModuleType | None, str]:
    """The pybind11 module, whose import registers the C++ ops, or None and the reason."""
    if os.environ.get("LIRANK_NO_EXT", "0") not in ("", "0"):
        return None, "LIRANK_NO_EXT is set"
    if importlib.util.find_spec("lirank_ext._C") is None:
        missing = "not built: no C++ compiler was found when the package was installed"
        return None, source_folder() or missing
    # A library that exists but does not load is an error. It is never silently left out.
    return importlib.import_module("lirank_ext._C"), ""


def _load_cuda() -> bool:
    """Load the CUDA kernels if they were built and PyTorch has CUDA. Returns whether it did."""
    if extension is None or torch.version.cuda is None:
        return False
    path = Path(extension.__file__).parent / "liblirank_cuda.so"
    if path.is_file():
        torch.ops.load_library(path)
    return path.is_file()


extension, why_no_extension = _load()
cuda_loaded = _load_cuda()


@cache
def cuda_library() -> ctypes.CDLL:
    """The loaded CUDA library as a ``ctypes`` object, for the functions that are not ops."""
    return ctypes.CDLL(str(Path(extension.__file__).parent / "liblirank_cuda.so"))
