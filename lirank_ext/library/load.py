"""Loads the compiled libraries. They register the C++ and CUDA kernels when they are loaded."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
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


def _why_not_built() -> str:
    """What the build left in the package, read as the reason why it has no compiled part here."""
    package = Path(__file__).parents[1]
    others = sorted(path.name for path in package.glob("_C.*.so"))
    if others:
        return (
            f"compiled for another Python ({', '.join(others)}): install the package again with "
            f"this one ({sys.implementation.cache_tag})"
        )
    reason = package / "_not_built.txt"
    if reason.is_file():
        return reason.read_text().strip()
    return source_folder() or f"not built: the compiled part is missing from {package}"


def _load() -> tuple[ModuleType | None, str]:
    """The pybind11 module, whose import registers the C++ ops, or None and the reason."""
    if os.environ.get("LIRANK_NO_EXT", "0") not in ("", "0"):
        return None, "LIRANK_NO_EXT is set"
    # The finder of an editable installation offers its own module to any folder of sources.
    found = importlib.util.find_spec("lirank_ext._C")
    if found is None or Path(found.origin).parent != Path(__file__).parents[1]:
        return None, _why_not_built()
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
