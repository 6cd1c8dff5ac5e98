"""The CUDA code on a machine without a GPU: it compiles, links, registers and is correct.

The kernels run here as plain C++ (``cuda_on_host.h``) on every case of ``verify``. Races and speed
need a GPU (``benchmarks/gpu.sh``).
"""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lirank_ext.library import build_info, op
from lirank_ext.ops.quantized_embedding_layout import layout

ROOT = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).parent
KERNELS = sorted((ROOT / "kernels").glob("*.cu"))
GLUE = sorted((ROOT / "csrc/cuda").glob("*.cpp"))
ARCHITECTURES = ("80", "90", "100")
# The ops of every family that has CUDA kernels.
OPS: dict[str, list[str]] = {}
for name, one in op.OPS.items():
    if (ROOT / f"csrc/cuda/{one.family}_cuda.cpp").is_file():
        OPS.setdefault(one.family, []).append(name)
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH: CUDA is not compiled here")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
STABLE = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{TORCH}/include"]
STABLE.append(f'-DLIRANK_CUDA_ARCHITECTURES="{" ".join(ARCHITECTURES)}"')
HOST = ["g++", "-std=c++17", "-fPIC", "-w", "-fvisibility=hidden", "-ffp-contract=off"]
FOLDERS = [f"-I{ROOT}/csrc", f"-I{ROOT}/kernels"]


def _run(command: list) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _toolkit() -> Path:
    text = _run([NVCC, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"])
    return Path(re.search(r"^#\$ TOP=(.*)$", text, re.MULTILINE)[1])


def _cudart() -> list[str]:
    """The flags of setup.py, which cannot be imported without building."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "cudart_of")
    made: dict = {}
    exec(compile(ast.Module([function], []), "setup.py", "exec"), made)
    return made["cudart_of"](_toolkit()).split()


def _compile_all(jobs: list[tuple[Path, list]]) -> dict[Path, str]:
    """{source: what the compiler said}, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([j[0] for j in jobs], pool.map(lambda j: _run(j[1]), jobs), strict=True))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, dict[Path, str]]:
    """liblirank_cuda.so for the three architectures, and what ptxas said."""
    work = tmp_path_factory.mktemp("cuda")
    arch = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", *arch, *FOLDERS]
    flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
    include = [*STABLE, f"-I{_toolkit()}/include", *FOLDERS]
    jobs = [(s, [NVCC, *flags, "-c", s, "-o", work / f"{s.name}.o"]) for s in KERNELS]
    jobs += [(s, [*HOST, *include, "-c", s, "-o", work / f"{s.name}.o"]) for s in GLUE]
    said = _compile_all(jobs)
    library = work / "liblirank_cuda.so"
    link = [f"-L{TORCH}/lib", "-ltorch_cpu", f"-L{_toolkit()}/lib64", *_cudart()]
    _run(["g++", "-shared", *work.glob("*.o"), *link, "-o", library])
    return library, said


@needs_nvcc
def test_kernels_spill_nothing(built):
    for source in KERNELS:
        text = built[1][source]
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert source.stem == "errors" or spills, f"{source.name}: ptxas said nothing"
        assert {x for pair in spills for x in pair} <= {"0"}, f"{source.name}:\n{text}"


@needs_nvcc
def test_library_needs_no_cxx_symbol_of_torch_and_no_cuda_build(built):
    undefined = _run(["nm", "-DC", "--undefined-only", built[0]])
    assert "aoti_torch" in undefined
    assert not re.findall(r".*\b(?:at|c10)::.*", undefined)
    needed = re.findall(r"NEEDED.*\[(.*)\]", _run(["readelf", "-d", built[0]]))
    assert "libtorch_cpu.so" in needed
    assert not {n for n in needed if n.startswith(("libtorch_cuda", "libc10_cuda", "libcuda."))}


@needs_nvcc
def test_library_brings_its_own_cuda_runtime_and_shows_none_of_it(built):
    if not (_toolkit() / "lib64/libcudart_static.a").is_file():
        pytest.skip("this toolkit has no libcudart_static.a: the library is linked to its .so")
    assert "libcudart" not in _run(["readelf", "-d", built[0]])
    defined = _run(["nm", "-DC", "--defined-only", built[0]])
    assert "lirank_take_errors" in defined
    assert not re.findall(r"\b(?:cuda[A-Z]\w*|__cuda\w*)", defined)
    undefined = _run(["nm", "-D", "--undefined-only", built[0]])
    assert not re.findall(r"\bcu(?:da)?[A-Z]\w*", undefined)


@needs_nvcc
def test_library_holds_the_three_architectures(built):
    triton = pytest.importorskip("triton", reason="cuobjdump comes with Triton; not installed")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = set(re.findall(r"sm_(\d+)", _run([cuobjdump, "--list-elf", built[0]])))
    assert found == set(ARCHITECTURES)
    assert build_info.architectures(built[0]) == [f"sm_{a}" for a in ARCHITECTURES]


@needs_nvcc
def test_resources_are_read_from_the_library(built):
    pytest.importorskip("triton", reason="cuobjdump comes with Triton; not installed")
    from lirank_ext.benchmarks import cuda_resources

    own = [r for r in cuda_resources.read(built[0]) if cuda_resources.own(r)]
    assert {r.architecture for r in own} == set(map(int, ARCHITECTURES))
    by = {r.kernel: r for r in own if r.architecture == 90}
    some = {"quantize_kernel", "pool_kernel<8, long, __half>", "sum_runs_kernel<float, 2, true>"}
    assert some <= set(by)
    assert all(0 < r.registers <= 255 and r.instructions > 50 and r.local == 0 for r in own)
    rows = by["hashed_kernel<FloatReader<__half, 8>, __half, false>"]
    assert rows.loads == 8  # the four rows of two ids
    assert cuda_resources.table(own)[2].count("|") == 2 + len(ARCHITECTURES)


@needs_nvcc
def test_library_loads_on_a_cpu_build_of_torch_and_registers_its_ops(built):
    names = [name for ops in OPS.values() for name in ops]
    code = (
        "import torch, lirank_ext; torch.ops.load_library(" + repr(str(built[0])) + ");"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key;"
        f"print([n for n in {names} if not has('lirank::' + n, 'CUDA')])"
    )
    assert _run([sys.executable, "-c", code]).splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def on_host(tmp_path_factory) -> Path:
    """The same sources as plain C++: a library that serves CPU tensors."""
    work = tmp_path_factory.mktemp("host")
    flags = [*HOST, "-O2", "-include", ROOT / "tests/cuda_on_host.h"]
    flags += [f"-I{ROOT}/tests/cuda_on_host"]
    flags += [*STABLE, f"-I{_toolkit()}/include", *FOLDERS]
    jobs = [(s, [*flags, "-x", "c++", "-c", s, "-o", work / f"{s.name}.o"]) for s in KERNELS + GLUE]
    _compile_all(jobs)
    library = work / "libon_host.so"
    _run(["g++", "-shared", *work.glob("*.o"), f"-L{TORCH}/lib", "-ltorch_cpu", "-o", library])
    return library


@needs_nvcc
@needs_compiler
@pytest.mark.parametrize("stem", OPS)
def test_kernels_agree_with_the_reference_when_run_on_the_host(on_host, stem):
    script = ROOT / "tests" / "cuda_on_host.py"
    said = _run([sys.executable, script, on_host, *OPS[stem]])
    assert said.count(" 0 failed") == len(OPS[stem]), said


SHARED = r"""
#include "hashing_murmur.h"
#include "quantized_embedding_layout.h"
extern "C" void rows(uint64_t hash, uint64_t buckets, uint32_t remainders, int64_t* out) {
  const auto r = lirank::murmur::rows_of(hash, lirank::murmur::row_rule(buckets, remainders));
  out[0] = r.quotient_b, out[1] = r.remainder_b, out[2] = r.quotient_c, out[3] = r.remainder_c;
}
extern "C" void layout(int64_t dim, int bits, int64_t* out) {
  const auto l = lirank::rowwise::layout(dim, bits);
  out[0] = l.code_bytes, out[1] = l.row_bytes, out[2] = l.apart;
}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> ctypes.CDLL:
    work = tmp_path_factory.mktemp("shared")
    (work / "shared.cpp").write_text(SHARED)
    flags = [*HOST, "-fvisibility=default", *FOLDERS, "-O2", "-shared"]
    _run([*flags, work / "shared.cpp", "-o", work / "shared.so"])
    return ctypes.CDLL(str(work / "shared.so"))


@needs_compiler
def test_row_rule_is_that_of_python_integers(shared):
    top = (1 << 32) - 1
    halves = [0, 1, 2, 999, 1000, 1001, (1 << 31) - 1, 1 << 31, top - 1, top]
    halves += torch.randint(0, top, (50,)).tolist()
    out = (ctypes.c_int64 * 4)()
    for buckets in (1, 2, 3, 1000, 10_007, (1 << 31) + 1, top, 1 << 32):
        for remainders in (1, 2, 3, 7, 1000, 1024, (1 << 31) + 1, top):
            for b, c in zip(halves, reversed(halves), strict=True):
                shared.rows(
                    ctypes.c_uint64(c << 32 | b),
                    ctypes.c_uint64(buckets),
                    ctypes.c_uint32(remainders),
                    out,
                )
                wanted = [*divmod(b % buckets, remainders), *divmod(c % buckets, remainders)]
                assert list(out) == wanted, (b, c, buckets, remainders)


@needs_compiler
def test_layout_in_cxx_is_that_in_python(shared):
    out = (ctypes.c_int64 * 3)()
    for bits in (8, 4):
        for dim in range(1, 1030):
            shared.layout(ctypes.c_int64(dim), bits, out)
            form = layout(dim, bits)
            assert list(out) == [form.code_bytes, form.row_bytes, form.apart], (dim, bits)
