"""Builds liblirank.so (the ops), lirank_ext._C (pybind11) and, with nvcc, liblirank_cuda.so.

Ninja runs the compilers, so that a rebuild compiles what changed. Without a C++ compiler
the package installs as pure Python. Switches: LIRANK_NO_BUILD=1 skips everything compiled,
FORCE_CUDA=0|1 overrides the detection of nvcc.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ARCHITECTURES = ("80", "90", "100")
# Plain C++, AVX2, AVX-512: every file of csrc/simd is compiled for each; see simd/foreach_isa.h.
ISAS = (0, 256, 512)


def wants_cuda(nvcc):
    force = os.environ.get("FORCE_CUDA")
    if force == "1" and nvcc is None:
        sys.exit("FORCE_CUDA=1, but no nvcc on PATH: install a CUDA toolkit or unset FORCE_CUDA.")
    return nvcc is not None and force != "0" and any((ROOT / "kernels").glob("*.cu"))


def toolkit_of(nvcc):
    """The folder of the CUDA toolkit, as nvcc names it: the nvcc on PATH may be a wrapper."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    for line in subprocess.run(command, capture_output=True, text=True).stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.partition("=")[2]).resolve()
    return Path(nvcc).resolve().parent.parent


def cudart_of(toolkit):
    """How the CUDA runtime is linked: into the library, unseen from outside, where that is there.

    A PyTorch for CUDA 12 brings libcudart.so.12, one for CUDA 13 libcudart.so.13; a library with
    its own runtime needs neither and loads beside every PyTorch whose driver knows the toolkit.
    Two runtimes in one process share the driver's context of a device, its memory and its
    streams: a cudaStream_t that PyTorch's runtime made is the driver's handle, good in both.
    """
    if (toolkit / "lib64" / "libcudart_static.a").is_file():
        return "-l:libcudart_static.a -Wl,--exclude-libs,libcudart_static.a -lrt -lpthread -ldl"
    return "-lcudart -ldl"


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it; the results land inside the package."""

    def run(self):
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if os.environ.get("LIRANK_NO_BUILD") == "1" or compiler is None:
            print("lirank_ext: no C++ compiler, installing as pure Python (references only).")
            self.extensions = []
            return
        package = ROOT / "lirank_ext" if self.inplace else Path(self.build_lib) / "lirank_ext"
        package.mkdir(parents=True, exist_ok=True)
        work = (
            ROOT / "build" / f"ninja-{sys.implementation.cache_tag}"
        )  # kept: rebuilds are incremental
        work.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(self.ninja_file(compiler, package.resolve()))
        subprocess.check_call([sys.executable, "-m", "ninja", "-C", str(work)])

    def ninja_file(self, compiler, package):
        import pybind11
        import torch

        torch_root = Path(torch.__file__).parent
        version = torch.__version__.split("+")[0]
        nvcc = shutil.which("nvcc")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        core, module = package / "liblirank.so", package / f"_C{suffix}"
        stable = f"-DTORCH_TARGET_VERSION=0x020a000000000000 -I{torch_root}/include"
        python = f"-I{sysconfig.get_paths()['include']} -I{pybind11.get_include()}"
        # -ffp-contract=off: quantization codes are bit-equal on every backend, so a
        # multiply-add is fused only where a kernel says so.
        flags = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off"
        flags += " -Wall -Wno-psabi -Wno-maybe-uninitialized"
        # The description is what ninja prints: a line for every file, so that a build says how far
        # it is.
        lines = [
            f"cxx = {compiler}",
            f"nvcc = {nvcc}",
            f"flags = {flags} -I{ROOT}/csrc -I{ROOT}/kernels",
            "rule cxx\n  command = $cxx $flags $more -MD -MF $out.d -c $in -o $out\n"
            "  depfile = $out.d\n  deps = gcc\n  description = compile $out",
            "rule link\n  command = $cxx -shared -Wl,-rpath,'$$ORIGIN' $in $more -o $out\n"
            "  description = link $out",
            "rule nvcc\n  command = $nvcc -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden "
            f"--fmad=false -I{ROOT}/csrc -I{ROOT}/kernels $arch -MD -MF $out.d -c $in -o $out\n"
            "  depfile = $out.d\n  deps = gcc\n  description = compile $out",
        ]

        def objects(sources, rule, more="", suffix=""):
            out = []
            for source in sources:
                out.append(f"{source.name}{suffix}.o")
                lines.append(f"build {out[-1]}: {rule} {source}\n  more = {more}")
            return " ".join(out)

        sources = sorted((ROOT / "csrc").glob("*.cpp"))
        glue = [s for s in sources if s.stem.endswith("_cuda")]
        bindings = ROOT / "csrc" / "bindings.cpp"
        torch_link = f"-L{torch_root}/lib -ltorch_cpu"
        kernels = sorted((ROOT / "csrc" / "simd").glob("*.cpp"))
        host = " ".join(
            objects(kernels, "cxx", f"{stable} -DLIRANK_ISA={isa}", f".{isa}") for isa in ISAS
        )
        host += " " + objects(
            [s for s in sources if s not in glue and s != bindings], "cxx", stable
        )
        lines.append(f"build {core}: link {host}\n  more = {torch_link} -lpthread -Wl,-z,defs")
        bound = objects([bindings], "cxx", f"{python} -DLIRANK_BUILT_FOR_TORCH={version}")
        lines.append(f"build {module}: link {bound} | {core}\n  more = -L{package} -l:liblirank.so")
        if wants_cuda(nvcc):
            arch = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES)
            lines.append(f"arch = {arch}")
            toolkit = toolkit_of(nvcc)
            named = f"-DLIRANK_CUDA_ARCHITECTURES='\"{' '.join(ARCHITECTURES)}\"'"
            include = f"-DUSE_CUDA -I{toolkit}/include {named}"
            device = objects(sorted((ROOT / "kernels").glob("*.cu")), "nvcc")
            device += " " + objects(glue, "cxx", f"{stable} {include}")
            more = f"{torch_link} -L{toolkit}/lib64 {cudart_of(toolkit)}"
            lines.append(f"build {package}/liblirank_cuda.so: link {device}\n  more = {more}")
        return "\n".join(lines) + "\n"

    def get_outputs(self):
        package = Path(self.build_lib) / "lirank_ext"
        return [str(p) for p in package.glob("*.so")]


setup(ext_modules=[Extension("lirank_ext._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
