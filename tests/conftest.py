from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from lirank_ext.library import load

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Set the number of threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with larger real data sets, if there is one beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository: larger real data are optional")
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


needs_library = pytest.mark.skipif(
    load.extension is None, reason=f"the C++ library is absent: {load.why_no_extension}"
)


@pytest.fixture(params=["pybind11", "ctypes", "references"])
def interface(request):
    """What is not a tensor op, in every way that it can be had; None stands for plain Python."""
    if request.param == "references":
        return None
    if load.extension is None:
        pytest.skip(f"the C++ library is absent: {load.why_no_extension}")
    if request.param == "ctypes":
        from lirank_ext.library import native

        return native
    if load.extension.way != "pybind11":
        pytest.skip("there is no pybind11 module for this Python")
    return load.extension
