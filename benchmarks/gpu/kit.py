"""Makes a folder that spares a machine with a GPU all compiling: ``make gpu-kit``.

``python -m lirank_ext.benchmarks.gpu.kit --out FOLDER [--libraries FOLDER]``, run with the Python,
PyTorch and Triton that the other machine has, needs no GPU. The folder holds

- the two libraries, which know no Python;
- Triton's cache, with every kernel that ``verify`` and the benchmark can choose, for sm_90;
- FBGEMM's inference kernels for sm_90 alone, as a peer, with ``--fbgemm``;
- ``kit.json``: the versions that it fits. ``benchmarks/gpu.sh`` uses it only where they are equal.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = 90
# A third of the size. It is part of Triton's cache key, so benchmarks/gpu.sh sets it too.
WITHOUT_LINES = {"TRITON_DISABLE_LINE_INFO": "1"}


def versions() -> dict[str, str]:
    """What has to be equal on the machine that uses the kit."""
    import torch
    import triton

    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    found |= {"torch": torch.__version__.split("+")[0], "triton": triton.__version__}
    return found | {"machine": os.uname().machine}


def libraries(out: Path, built: Path) -> None:
    """The libraries from ``built``; every Python reaches them by ctypes."""
    for name in ("liblirank.so", "liblirank_cuda.so"):
        shutil.copy(built / name, out / name)


# ---- FBGEMM as a peer --------------------------------------------------------------------

FBGEMM = "fbgemm-gpu==1.6.0"
FBGEMM_LIBRARIES = (
    "asmjit",
    "fbgemm",
    "fbgemm_gpu_config",
    "fbgemm_gpu_tbe_cache",
    "fbgemm_gpu_tbe_inference",
)


def fbgemm(out: Path) -> None:
    """FBGEMM's inference libraries: 465 MB as a wheel, 10 MB with sm_90 alone and compressed."""
    from lirank_ext.benchmarks.gpu.fbgemm.prune import prune

    scripts, folder = Path(__file__).parent / "fbgemm", out / "fbgemm"
    folder.mkdir(exist_ok=True)
    for name in ("load_fbgemm.py", "fbgemm_peer.py"):
        shutil.copy(scripts / name, folder / name)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, FBGEMM]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for entry in wheel.namelist():
                path = Path(entry)
                if path.suffix == ".so" and path.stem in FBGEMM_LIBRARIES:
                    data = bytearray(wheel.read(entry))
                    prune(data, ARCHITECTURE)
                    packed = lzma.compress(bytes(data), preset=9 | lzma.PRESET_EXTREME)
                    (folder / f"{path.name}.xz").write_bytes(packed)
                elif path.name.startswith("LICENSE"):
                    (folder / "LICENSE.fbgemm").write_bytes(wheel.read(entry))
    missing = [n for n in FBGEMM_LIBRARIES if not (folder / f"{n}.so.xz").is_file()]
    if missing:
        sys.exit(f"gpu kit: {FBGEMM} has no {', '.join(missing)}")


# ---- Triton's cache ----------------------------------------------------------------------


def _serve_cpu_by_triton() -> list[str]:
    """In this process CPU tensors reach the Triton launchers; the ops that have one."""
    import torch

    from lirank_ext.library import gpu
    from lirank_ext.library.build_info import planned_backend
    from lirank_ext.library.op import OPS

    library = torch.library.Library("lirank", "IMPL")
    _serve_cpu_by_triton.library = library  # its registrations go with it
    found = []
    for name, op in OPS.items():
        if planned_backend(op) == "triton":  # the others are served by the CUDA library
            library.impl(name, gpu.launcher(op), "CPU")
            found.append(name)
    return found


def _calls(ops: list[str]):
    """Everything that ``verify`` and the benchmark ask of Triton, as functions to be recorded."""
    import torch

    from lirank_ext.benchmarks.gpu.target import Place
    from lirank_ext.benchmarks.gpu.worker import SUBJECTS
    from lirank_ext.library.op import OPS
    from lirank_ext.verify.cases import all_cases

    for case in all_cases():
        if case.op not in ops or case.raises is not None:
            continue

        def call(case=case):
            given = list(case.call)
            for name in case.trained:
                given[name] = given[name].detach().clone().requires_grad_()
            out = OPS[case.op].overload(*given)
            out = out if isinstance(out, torch.Tensor) else out[0]
            if case.grad:
                torch.autograd.grad(out, [given[n] for n in case.trained], out.detach(),
                                    allow_unused=True)  # fmt: skip

        yield call
    for name in ("low_rank", "low_rank_step", "attention", "net", "isotonic"):
        for target in SUBJECTS[name](Place("cpu", 64)):

            def call(target=target):
                with torch.no_grad():
                    target.ours(*target.sets[0])

            yield call


def _compile_share(first: int, step: int) -> int:
    from triton.runtime import driver

    from lirank_ext.benchmarks.triton_resources import _Compiler
    from lirank_ext.kernels import launch

    driver.set_active(_Compiler(ARCHITECTURE))
    ops, found, skipped = _serve_cpu_by_triton(), {}, 0
    for call in _calls(ops):
        with launch.recording(ARCHITECTURE) as recorded:
            try:
                call()
            except Exception as error:
                skipped += 1
                print(f"gpu kit: a call was left out: {error!s:.200}", file=sys.stderr)
        for one in recorded:
            found.setdefault(_key(one), one)
    chosen = [one for _, one in sorted(found.items())][first::step]
    for one in chosen:
        try:
            one.kernel.warmup(*one.args, grid=(1,), **(launch.FUSION | one.constants))
        except Exception as error:
            print(f"gpu kit: {one.kernel.__name__} {one.constants} does not compile: {error}",
                  file=sys.stderr)  # fmt: skip
    return len(chosen)


def _key(one) -> str:
    """What tells two compiled kernels apart, coarsely: Triton's own cache tells exactly."""
    kinds = []
    for value in one.args:
        if hasattr(value, "dtype") and hasattr(value, "data_ptr"):
            kinds.append(f"{value.dtype}{value.data_ptr() % 16 == 0}")
        elif isinstance(value, int):
            kinds.append(f"{type(value).__name__}{value == 1}{value % 16 == 0}{value >> 31 == 0}")
        else:
            kinds.append(str(value))
    return f"{one.kernel.__name__} {kinds} {sorted(one.constants.items())}"


def triton_cache(out: Path, processes: int) -> int:
    os.environ["TRITON_CACHE_DIR"] = str(out / "triton")
    os.environ["LIRANK_NO_EXT"] = "1"
    os.environ |= WITHOUT_LINES
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(_compile_share, i, processes) for i in range(processes)]
        count = sum(share.result() for share in shares)
    for file in (out / "triton").rglob("*"):  # what only people read
        if file.suffix in (".ttir", ".ttgir", ".llir", ".ptx", ".source"):
            file.write_bytes(b"")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--libraries", type=Path, default=ROOT / "lirank_ext", metavar="FOLDER")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--no-triton", action="store_true", help="leave Triton's cache as it is")
    parser.add_argument("--fbgemm", action="store_true", help=f"with {FBGEMM} as a peer")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    libraries(out, options.libraries)
    if options.fbgemm:
        fbgemm(out)
    count = 0 if options.no_triton else triton_cache(out, options.processes)
    (out / "kit.json").write_text(json.dumps(versions()))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"gpu kit: {out}: {count} kernels compiled, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
