"""The installed package: its imports, its files, and how it works without optional parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, needs_library

import lirank_ext
from lirank_ext.library.op import OPS, implementations

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS = ("rich", "matplotlib", "pandas", "pyarrow", "sklearn", "tqdm", "triton", "mmh3")


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_folder_is_shipped():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    listed = set(listed["tool"]["setuptools"]["packages"])
    found = {
        ".".join(p.parent.relative_to(REPOSITORY).parts)
        for p in (REPOSITORY / "lirank_ext").rglob("__init__.py")
    }
    found |= {
        ".".join(("lirank_ext", *p.parent.relative_to(REPOSITORY).parts))
        for folder in ("kernels", "benchmarks")
        for p in (REPOSITORY / folder).rglob("__init__.py")
    }
    assert listed == found


def test_kernels_and_benchmarks_live_inside_the_package(tmp_path):
    assert python("import lirank_ext.kernels, lirank_ext.benchmarks").returncode == 0
    # Elsewhere than in a checkout, a name as common as these must not be this package's.
    code = (
        "import importlib.util as u, sys\n"
        "found = [u.find_spec(name) for name in ('kernels', 'benchmarks')]\n"
        "sys.exit(any(s is not None and sys.argv[1] in str(s) for s in found))"
    )
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(REPOSITORY)]
    assert subprocess.run(command, cwd=tmp_path, env=kept).returncode == 0


def test_torch_and_numpy_are_enough():
    """Import, info and verify with every optional package made unimportable."""
    code = (
        "import sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"
        "import torch; torch.set_num_threads(1)\n"
        "from lirank_ext.__main__ import main\n"
        "assert main(['info']) == 0\n"
        "assert main(['verify', '--op', 'isotonic_calibration']) == 0\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "isotonic_calibration" in done.stdout


def test_without_the_library_the_references_serve():
    code = (
        "import json, lirank_ext as L\n"
        "from lirank_ext.library.load import extension\n"
        "from lirank_ext.library.op import OPS\n"
        "kinds = {n: list(L.implementations(n)) for n in OPS}\n"
        "print(json.dumps([L.build_info()['cpu'], kinds]))"
    )
    done = python(code, LIRANK_NO_EXT="1")
    assert done.returncode == 0, done.stderr
    cpu, kinds = json.loads(done.stdout)
    assert "LIRANK_NO_EXT" in cpu
    assert all("cpu" not in found for found in kinds.values())


@needs_library
def test_every_op_has_a_cpu_kernel():
    assert all("cpu" in implementations(name) for name in OPS)


@needs_library
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_lower_instruction_sets_verify_too(isa, tmp_path):
    code = (
        "import sys, lirank_ext, torch\n"
        "from lirank_ext.__main__ import main\n"
        "print(lirank_ext.build_info()['cpu'])\n"
        "sys.exit(main(['verify', '--json', sys.argv[1]]))"
    )
    done = python(code, str(tmp_path / "verify.json"), LIRANK_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] in (isa, "plain")


@needs_library
def test_the_op_library_works_without_the_python_package():
    """liblirank.so holds no Python: any process with libtorch can load it."""
    library = Path(lirank_ext.__file__).parent / "liblirank.so"
    code = (
        "import sys, torch\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "y = torch.ops.lirank.isotonic_calibration(\n"
        "    torch.tensor([0.3]), torch.ones(8), torch.zeros(()), -2.0, 0.5)\n"
        "assert abs(y.item() - 0.3) < 1e-6 and 'lirank_ext' not in sys.modules"
    )
    done = python(code, str(library))
    assert done.returncode == 0, done.stderr


@needs_library
def test_the_op_library_needs_no_python_symbol():
    library = Path(lirank_ext.__file__).parent / "liblirank.so"
    import shutil

    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert " Py" not in symbols
    assert "_ZN2at" not in symbols, "an ATen C++ symbol would tie the build to one torch"
    assert "_ZN3c10" not in symbols, "a c10 C++ symbol would tie the build to one torch"


def test_build_info_names_what_runs():
    info = lirank_ext.build_info()
    assert info["torch_running"] == torch.__version__
    assert all(isinstance(v, str) and v for v in info.values())


def test_the_line_that_installs_an_extra_names_packages_that_exist():
    from lirank_ext.library.packages import install_line

    line = install_line("train")
    assert {"pyarrow", "safetensors", "tqdm"} <= set(line.split()) and "lirank_ext" not in line
    assert "matplotlib" in install_line("demo", "bench") and "pytest" not in install_line("demo")
