"""Other builds of the host library: with sanitizers, for coverage, without optimization.

A flavor is a folder with a package ``lirank_ext`` of its own: links to the Python sources of the
checkout, and a compiled library beside them. PYTHONPATH chooses it. The libraries of the checkout
are never touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "flavors"


@dataclass(frozen=True)
class Flavor:
    """How a library is compiled.

    Attributes:
        name: of its folder, without the instruction set.
        flags: for the compiler and the linker.
        compiler: which one, unless CXX names another.
        runtimes: shared libraries that have to be in the process first.
    """

    name: str
    flags: str
    compiler: str = "g++"
    runtimes: tuple[str, ...] = ()


ASAN = Flavor(
    "asan",
    # Without vptr: it needs type information of libtorch that hidden symbols do not have.
    "-O1 -g1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer",
    # The C++ runtime is loaded with it: it looks up what throws exceptions when it starts.
    runtimes=("libasan.so", "libstdc++.so"),
)
TSAN = Flavor("tsan", "-O1 -g1 -fsanitize=thread", runtimes=("libtsan.so", "libstdc++.so"))
COVERAGE = Flavor(
    "coverage", "-O1 -g1 -fsanitize=fuzzer-no-link -Wl,-z,undefs", compiler="clang++-14"
)


def processor() -> list[str]:
    """The instruction sets that kernels are compiled for and this machine has, plain first."""
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    needed = {"plain": (), "avx2": ("avx2", "fma"), "avx512": ("avx512f", "avx512bw", "avx512dq")}
    return [name for name, each in needed.items() if flags.issuperset(each)]


def folder(flavor: Flavor, isa: str) -> Path:
    """What PYTHONPATH has to name."""
    return FOLDER / f"{flavor.name}-{isa}"


def build(flavor: Flavor, isa: str) -> Path:
    """Compile what has changed, and lay out the package.

    Args:
        flavor: how.
        isa: plain, avx2 or avx512.

    Returns:
        The folder for PYTHONPATH.
    """
    made = folder(flavor, isa)
    environment = {
        **os.environ,
        "LIRANK_BUILD_FLAGS": flavor.flags,
        "LIRANK_BUILD_ISA": isa,
        "CXX": os.environ.get("CXX", flavor.compiler),
        "FORCE_CUDA": "0",
        "LIRANK_NO_BUILD": "0",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(made)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    lay_out(made / "lirank_ext")
    return made


def lay_out(package: Path) -> None:
    """Link the Python sources beside the compiled libraries of a package folder."""
    package.mkdir(parents=True, exist_ok=True)
    sources = {p.name: p for p in (ROOT / "lirank_ext").iterdir() if p.suffix != ".so"}
    sources |= {"kernels": ROOT / "kernels", "benchmarks": ROOT / "benchmarks"}
    for name, source in sources.items():
        link = package / name
        if name.startswith("_not_built") or name == "__pycache__":
            continue
        if not link.is_symlink():
            link.symlink_to(source.resolve())


def environment(flavor: Flavor, made: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses a flavor."""
    found = {**os.environ, "PYTHONPATH": str(made), **more}
    found.pop("LIRANK_NO_EXT", None)
    if flavor.runtimes:
        compiler = os.environ.get("CXX", flavor.compiler).split()[-1]
        paths = [
            subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
            for name in flavor.runtimes
        ]
        found["LD_PRELOAD"] = " ".join([*paths, *filter(None, [more.get("LD_PRELOAD")])])
    return found
