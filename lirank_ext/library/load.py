"""Loads the compiled libraries. They register the C++ and CUDA kernels when they are loaded."""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).parents[1]
INTERFACE = 1  # of csrc/bindings/python_interface.h
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
    reason = PACKAGE / "_not_built.txt"
    if reason.is_file():
        return reason.read_text().strip()
    return source_folder() or f"not built: the compiled part is missing from {PACKAGE}"


def _load() -> tuple[ModuleType | None, str]:
    """What is not a tensor op, whose import registers the C++ ops, or None and the reason.

    A build from source has the pybind11 module of its Python. A wheel, or another Python on the
    same files, reaches the library by ctypes.
    """
    if os.environ.get("LIRANK_NO_EXT", "0") not in ("", "0"):
        return None, "LIRANK_NO_EXT is set"
    library = PACKAGE / "liblirank.so"
    # The finder of an editable installation offers its own module to any folder of sources.
    found = importlib.util.find_spec("lirank_ext._C")
    has_module = found is not None and Path(found.origin).parent == PACKAGE
    if not has_module and not library.is_file():
        return None, _why_not_built()
    # A library that exists but does not load is an error. It is never silently left out.
    _check_interface(library)
    name = "lirank_ext._C" if has_module else "lirank_ext.library.native"
    return importlib.import_module(name), ""


def _check_interface(library: Path) -> None:
    """Refuse what was compiled from other sources, as a checkout has after its sources change."""
    number = getattr(ctypes.CDLL(str(library)), "lirank_interface", None)
    if number is None or number() != INTERFACE:
        raise ImportError(
            f"lirank_ext: {library} was compiled from other sources than those in {PACKAGE}: "
            "install the package again, or in a checkout run 'python setup.py build_ext --inplace'"
        )


def _load_cuda() -> bool:
    """Load the CUDA kernels if they were built and PyTorch has CUDA. Returns whether it did."""
    if extension is None or torch.version.cuda is None:
        return False
    path = PACKAGE / "liblirank_cuda.so"
    if path.is_file():
        torch.ops.load_library(path)
    return path.is_file()


extension, why_no_extension = _load()
cuda_loaded = _load_cuda()


@cache
def cuda_library() -> ctypes.CDLL:
    """The loaded CUDA library as a ``ctypes`` object, for the functions that are not ops."""
    return ctypes.CDLL(str(PACKAGE / "liblirank_cuda.so"))
