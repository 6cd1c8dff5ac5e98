"""Every C++ source against the headers of the oldest torch that the package promises.

CI builds against one torch. What newer headers have and the oldest have not would be seen by the
first user who builds on it. Only the headers of its wheel are fetched, a part of 1.5 MB, by pip's
own reader of wheels that lie elsewhere; they are kept in ``.cache``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1] + ".0"
HEADERS = ("csrc/stable", "csrc/inductor/aoti_torch", "headeronly")
SECONDS = 120  # to find the wheel in the index; 25 s where the index is near

# Runs in a process of its own: pip's parts are not made for being imported elsewhere.
FETCH = """
import sys, zipfile
from pip._internal.network.lazy_wheel import LazyZipOverHTTP
from pip._internal.network.session import PipSession
url, to, *wanted = sys.argv[1:]
with LazyZipOverHTTP(url, PipSession()) as remote:
    wheel = zipfile.ZipFile(remote)
    files = [f for f in wheel.infolist() if f.filename.startswith(tuple(wanted))]
    first = min(f.header_offset for f in files)
    remote.seek(first)
    remote.read(max(f.header_offset + f.compress_size for f in files) - first)  # in one request
    wheel.extractall(to, files)
"""


def _fetch(to: Path) -> None:
    """The headers into ``to``; raises where pip or the index cannot."""
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    asked += ["--quiet", "--report", "-", f"torch=={OLDEST}"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=SECONDS)
    url = json.loads(said.stdout)["install"][0]["download_info"]["url"]
    wanted = [f"torch/include/torch/{name}/" for name in HEADERS]
    command = [sys.executable, "-c", FETCH, url, str(to), *wanted]
    subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def include() -> Path:
    """The include folder of the oldest torch, as far as a stable-ABI extension reads it."""
    kept = ROOT / ".cache" / f"torch-{OLDEST}"
    if not kept.is_dir():
        scratch = kept.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _fetch(scratch)
        except (subprocess.SubprocessError, OSError, ValueError, LookupError) as error:
            pytest.skip(f"the headers of torch {OLDEST} could not be fetched: {error}")
        scratch.rename(kept)
    return kept / "torch" / "include"


def _toolkit_include() -> Path | None:
    """Where cuda_runtime_api.h lies, beside the nvcc on PATH."""
    if shutil.which("nvcc") is None:
        return None
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    return Path(found[1]) / "include" if found else None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_sources_compile_with_the_oldest_headers(include):
    cuda = _toolkit_include()
    flags = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-w",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]
    flags += [f"-I{include}", f"-I{ROOT}/csrc", f"-I{ROOT}/kernels"]
    device = ["-DUSE_CUDA", '-DLIRANK_CUDA_ARCHITECTURES="90"', f"-I{cuda}"]
    folders = ["", "library", *(["cuda"] if cuda else [])]
    sources = [s for f in folders for s in sorted((ROOT / "csrc" / f).glob("*.cpp"))]

    def compiled(source: Path) -> str:
        more = device if source.parent.name == "cuda" else []
        done = subprocess.run([*flags, *more, source], capture_output=True, text=True)
        return "" if done.returncode == 0 else f"{source.name}: {done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [text for text in pool.map(compiled, sources) if text]
    assert not wrong, "\n".join(wrong)
