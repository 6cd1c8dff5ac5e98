"""Builds liblirank.so (the ops), lirank_ext._C (pybind11) and liblirank_cuda.so (CUDA kernels).

Ninja runs the compilers, so that a rebuild compiles only what changed. Without a C++ compiler the
package installs as pure Python, and ``lirank-ext info`` says why. PyTorch is read for its headers
and never imported; where there is none, its wheel is fetched for them. Environment variables:

CXX                   the compiler, with a launcher if there is one: ``CXX="ccache g++"``.
LIRANK_NO_BUILD=1     compiles nothing; the wheel is py3-none-any.
LIRANK_ANY_PYTHON=1   leaves out lirank_ext._C, which is for one Python; lirank_ext.library.native
                      does its work by ctypes. The wheel is py3-none-<platform>.
FORCE_CUDA=0|1        compiles the CUDA kernels never, or always where nvcc is. Without it they are
                      compiled where nvcc is and PyTorch has CUDA.
LIRANK_BUILD_FLAGS    more flags for the compiler and the linker of host code, after those of this
                      file: "-O1 -g -fsanitize=address".
LIRANK_BUILD_ISA      plain, avx2 or avx512: the only instruction set whose kernels are compiled.
                      The library that results is for tests. Objects of a build with either variable
                      have a folder of their own.
"""

import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"lirank_ext: wanted setuptools 77 or newer to build, got {setuptools.__version__}: "
        "pip install 'setuptools>=77'"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ARCHITECTURES = ("80", "90", "100")
# Plain C++, AVX2, AVX-512: every file of csrc/simd is compiled for each; see simd/foreach_isa.h.
ISAS = {"plain": 0, "avx2": 256, "avx512": 512}
# -ffp-contract=off: quantization codes are bit-equal on every backend, so a multiply-add is fused
# only where a kernel says so.
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off"
FLAGS += " -Wall -Wno-psabi -Wno-maybe-uninitialized"
ANY_PYTHON = os.environ.get("LIRANK_ANY_PYTHON") == "1"
NO_BUILD = os.environ.get("LIRANK_NO_BUILD") == "1"
OLDEST_TORCH = (2, 10)
# Asked for in this order where there is no PyTorch: a CPU wheel is a fifth of one with CUDA, and
# only the headers are used, whose version does not matter to the result.
FETCHED_TORCH = ("torch==2.13.0+cpu", "torch>=2.10")
HEADERS = ("version.py", "include/torch/csrc/stable/", "include/torch/headeronly/",
           "include/torch/csrc/inductor/aoti_torch/")  # fmt: skip
WITHOUT = "or set LIRANK_NO_BUILD=1 to install without compiled parts"
# C++17, and the newest instruction sets for which code is compiled.
PROBE = """
#include <optional>
#if defined(__x86_64__)
__attribute__((target("avx512bf16,amx-tile,amx-bf16"))) void newest() {}
#endif
int main() { return std::optional<int>(0).value(); }
"""


def stop(text):
    sys.exit(f"lirank_ext: {text}, {WITHOUT}.")


def find_compiler():
    """The compiler's command as a list, or [] if this machine has none."""
    given = os.environ.get("CXX")
    if not given:
        return next(
            ([path] for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), []
        )
    command = [given] if shutil.which(given) else shlex.split(given)
    if not command or shutil.which(command[0]) is None:
        stop(f"CXX is {given!r}, which is not a program: name a C++ compiler there")
    return [shutil.which(command[0]), *command[1:]]


def check_compiler(command):
    """End with one sentence where the compiler or Python's headers would fail minutes later."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        probe = [*command, "-std=c++17", "-c", str(source), "-o", str(source.with_suffix(".o"))]
        done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        stop(
            f"the compiler {shlex.join(command)!r} cannot compile C++17 for AMX ({said}): "
            "lirank_ext needs GCC 11 or clang 12, or newer. Name such a compiler in CXX"
        )
    if ANY_PYTHON:
        return
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        stop(
            f"{include}/Python.h is missing: install Python's headers (python3-dev on Debian and "
            "Ubuntu, python3-devel on Fedora), or set LIRANK_ANY_PYTHON=1, which needs none"
        )


class Torch:
    """The folder of an installed PyTorch, or of its headers."""

    def __init__(self, folder):
        self.folder = folder
        named = runpy.run_path(str(folder / "version.py"))
        self.version, self.cuda = named["__version__"].split("+")[0], named.get("cuda")

    def fits(self):
        return tuple(int(n) for n in self.version.split(".")[:2]) >= OLDEST_TORCH

    def link(self, compiler):
        """The options that name libtorch_cpu.so, which the process has loaded at run time."""
        folder, options = self.folder / "lib", "-Wl,--no-as-needed -ltorch_cpu"
        if (folder / "libtorch_cpu.so").is_file():
            return f"{_folder('-L', folder)} {options} -Wl,-z,defs"
        # Headers alone: an empty library of that name, and no check that it has the functions.
        folder.mkdir(exist_ok=True)
        command = [*compiler, "-shared", "-fPIC", "-Wl,-soname,libtorch_cpu.so", "-x", "c++",
                   os.devnull, "-o", str(folder / "libtorch_cpu.stub.so")]  # fmt: skip
        subprocess.run(command, check=True)
        return f"{_folder('-L', folder)} -Wl,--no-as-needed -l:libtorch_cpu.stub.so"


def find_torch():
    """The PyTorch of this environment, or the headers of one.

    pip hides the environment from an isolated build, but its folder is still that of sysconfig: so
    an isolated build takes the PyTorch that is already there. Other front ends build in an
    environment of their own, where the wheel of a PyTorch is fetched, without what it depends on.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    folders += [Path(sysconfig.get_paths()[kind]) / "torch" for kind in ("purelib", "platlib")]
    kept = ROOT / "build" / "torch"
    for folder in (*folders, kept):
        if all((folder / name).exists() for name in HEADERS) and Torch(folder).fits():
            return Torch(folder)
    fetch_torch(kept)
    return Torch(kept)


def fetch_torch(kept):
    shutil.rmtree(kept, ignore_errors=True)
    for wanted in FETCHED_TORCH:
        with tempfile.TemporaryDirectory() as folder:
            print(f"lirank_ext: no PyTorch here, fetching the wheel of {wanted} for its headers.")
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "-q", "--dest", folder, wanted], capture_output=True, text=True
            )
            if done.returncode:
                continue
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                names = tuple(f"torch/{name}" for name in HEADERS)
                wheel.extractall(kept.parent, [n for n in wheel.namelist() if n.startswith(names)])
            return
    said = (done.stderr.strip() or f"pip ended with {done.returncode}").splitlines()[-1]
    stop(
        f"compiling needs the headers of PyTorch 2.10 or newer, and pip could not fetch them "
        f"({said}): install PyTorch into this environment first"
    )


def wants_cuda(nvcc, torch_has_cuda):
    force = os.environ.get("FORCE_CUDA")
    if force == "1" and nvcc is None:
        sys.exit("FORCE_CUDA=1, but no nvcc on PATH: install a CUDA toolkit or unset FORCE_CUDA.")
    return nvcc is not None and force != "0" and (force == "1" or torch_has_cuda)


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


def only_isa():
    """The one instruction set that LIRANK_BUILD_ISA names, or None for all of them."""
    name = os.environ.get("LIRANK_BUILD_ISA")
    if name and name not in ISAS:
        sys.exit(f"LIRANK_BUILD_ISA: wanted one of {', '.join(ISAS)}, got {name!r}.")
    return name or None


def work_folder():
    """Where objects are kept for the next build: one folder a Python and a choice of flags."""
    choice = (os.environ.get("LIRANK_BUILD_FLAGS", ""), only_isa() or "")
    name = f"ninja-{sys.implementation.cache_tag}"
    if any(choice):
        name += f"-{zlib.crc32(repr(choice).encode()):08x}"
    return ROOT / "build" / name


class NinjaFile:
    """The text of a build.ninja in `folder`. Paths may hold spaces."""

    # The description is what ninja prints: a line for every file, so that a build says how far it
    # is.
    RULES = (
        "rule cxx\n  command = $cxx $flags $more -MD -MF $out.d -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc\n  description = compile $out",
        "rule link\n  command = $cxx -shared -Wl,-rpath,'$$ORIGIN' $in $more $extra -o $out\n"
        "  description = link $out",
        "rule nvcc\n  command = $nvcc -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden "
        "--fmad=false $own $arch -MD -MF $out.d -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc\n  description = compile $out",
    )

    def __init__(self, folder):
        self.folder = folder
        self.lines = []

    def variable(self, name, value):
        self.lines.append(f"{name} = {value.replace('$', '$$')}")

    def path(self, path):
        """Relative to the folder, so that a copied checkout is not compiled again."""
        return os.path.relpath(path, self.folder)

    def build(self, output, rule, inputs, more="", after=()):
        escaped = [_escaped(p) for p in (output, *inputs)]
        needs = " | " + " ".join(_escaped(p) for p in after) if after else ""
        self.lines.append(f"build {escaped[0]}: {rule} {' '.join(escaped[1:])}{needs}")
        self.variable("  more", more)
        return output

    def objects(self, sources, rule, more="", suffix=""):
        return [self.build(f"{s.name}{suffix}.o", rule, [self.path(s)], more) for s in sources]


def _escaped(path):
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _folder(option, path):
    return shlex.quote(f"{option}{path}")


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it; the results land inside the package."""

    def run(self):
        package = ROOT / "lirank_ext" if self.inplace else Path(self.build_lib) / "lirank_ext"
        package.mkdir(parents=True, exist_ok=True)
        reason = package / "_not_built.txt"
        reason.unlink(missing_ok=True)
        self.stale = None
        compiler = [] if NO_BUILD else find_compiler()
        if not compiler:
            why = "LIRANK_NO_BUILD was set" if NO_BUILD else "no C++ compiler was found"
            if not self.inplace:  # those of an earlier build would be shipped
                for old in package.glob("*.so"):
                    old.unlink()
            if not any(package.glob("*.so")):
                reason.write_text(f"not built: {why} when the package was installed\n")
            print(f"lirank_ext: {why}: installing as pure Python, which is slower.")
            self.extensions = []
            return
        check_compiler(compiler)
        for name in ("ninja",) if ANY_PYTHON else ("ninja", "pybind11"):
            if importlib.util.find_spec(name) is None:
                stop(f"compiling needs the package {name}: pip install {name}")
        work = work_folder()
        work.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(self.ninja_file(compiler, package.resolve(), work))
        if subprocess.call([sys.executable, "-m", "ninja", "-C", str(work)]):
            stop("compiling failed, see the first 'error:' above: mend it")
        if self.stale is not None and self.stale.is_file():
            print(f"lirank_ext: removing {self.stale.name} of an earlier build with CUDA.")
            self.stale.unlink()

    def ninja_file(self, compiler, package, work):
        file = NinjaFile(work)
        torch = find_torch()
        nvcc = shutil.which("nvcc")
        own = " ".join(_folder("-I", file.path(ROOT / f)) for f in ("csrc", "kernels"))
        file.variable("cxx", shlex.join(compiler))
        file.variable("nvcc", shlex.quote(nvcc or "nvcc"))
        file.variable("own", own)
        more, only = os.environ.get("LIRANK_BUILD_FLAGS", ""), only_isa()
        file.variable("extra", more)
        chosen = f" -DLIRANK_ONLY_ISA={ISAS[only]}" if only else ""
        file.variable("flags", f"{FLAGS} {own} {more}{chosen}")
        file.variable(
            "arch", " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES)
        )
        file.lines += NinjaFile.RULES

        stable = "-DTORCH_TARGET_VERSION=0x020a000000000000 " + _folder(
            "-I", torch.folder / "include"
        )
        torch_link = torch.link(compiler)
        sources, shared, glue, kernels = (
            sorted((ROOT / "csrc" / folder).glob("*.cpp"))
            for folder in ("", "library", "cuda", "simd")
        )
        interface = ROOT / "csrc" / "bindings" / "python_interface.cpp"
        host = [
            name
            for isa in ([ISAS[only]] if only else ISAS.values())
            for name in file.objects(kernels, "cxx", f"{stable} -DLIRANK_ISA={isa}", f".{isa}")
        ]
        host += file.objects([*sources, *shared], "cxx", stable)
        host += file.objects([interface], "cxx", f"-DLIRANK_BUILT_FOR_TORCH={torch.version}")
        core = file.path(package / "liblirank.so")
        file.build(core, "link", host, f"{torch_link} -lpthread")

        for old in package.glob("_C.*.so") if ANY_PYTHON else ():
            old.unlink()
        if not ANY_PYTHON:
            self.module(file, package, core)

        cuda = package / "liblirank_cuda.so"
        if not wants_cuda(nvcc, torch.cuda is not None):
            self.stale = cuda  # an earlier build's, which may not fit the rest
            return "\n".join(file.lines) + "\n"
        toolkit = toolkit_of(nvcc)
        named = f"-DLIRANK_CUDA_ARCHITECTURES='\"{' '.join(ARCHITECTURES)}\"'"
        include = f"-DUSE_CUDA {_folder('-I', toolkit / 'include')} {named}"
        device = file.objects(sorted((ROOT / "kernels").glob("*.cu")), "nvcc")
        device += file.objects(glue, "cxx", f"{stable} {include}")
        link = f"{torch_link} {_folder('-L', toolkit / 'lib64')} {cudart_of(toolkit)}"
        file.build(file.path(cuda), "link", device, link)
        return "\n".join(file.lines) + "\n"

    def module(self, file, package, core):
        """lirank_ext._C, for the Python that runs this."""
        import pybind11

        python = [sysconfig.get_paths()["include"], pybind11.get_include()]
        python = " ".join(_folder("-I", path) for path in python)
        module = file.path(package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
        beside = _folder("-L", file.path(package)) + " -l:liblirank.so"
        bound = file.objects([ROOT / "csrc" / "bindings" / "bindings.cpp"], "cxx", python)
        file.build(module, "link", bound, beside, after=[core])

    def get_outputs(self):
        package = Path(self.build_lib) / "lirank_ext"
        return [str(p) for p in (*package.glob("*.so"), *package.glob("_not_built.txt"))]


class Wheel(bdist_wheel):
    """Tags the wheel by what it holds."""

    def run(self):
        if NO_BUILD or not find_compiler():
            self.run_command("build_ext")  # which leaves the reason in the package
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self):
        if self.root_is_pure:
            return "py3", "none", "any"
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if ANY_PYTHON else (python, abi, platform)


setup(
    ext_modules=[Extension("lirank_ext._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": Wheel},
)
