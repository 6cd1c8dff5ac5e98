"""setup.py: what it compiles with, where it can be built, and what it says where it cannot."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, needs_library

pytest.importorskip("pybind11", reason="setup.py needs pybind11")
pytest.importorskip("ninja", reason="setup.py needs ninja")

# A compiler that only checks that its sources exist, and writes empty files.
COMPILER = """#!{python} -SE
import pathlib, sys
args = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*args, file=log)
output = args[args.index("-o") + 1]
for a in args:
    if a.endswith((".cpp", ".o")) and a != output and not pathlib.Path(a).exists():
        sys.exit("error: " + a + ": No such file or directory")
if "-MF" in args:
    pathlib.Path(args[args.index("-MF") + 1]).write_text("")
pathlib.Path(output).write_bytes(b"")
"""
BUILD_VARIABLES = ("CXX", "LIRANK_NO_BUILD", "LIRANK_ANY_PYTHON")
OLD = "#!/bin/sh\necho \"g++: error: unrecognized option '-std=c++17'\" >&2\nexit 1\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what is compiled, in a folder whose name holds a space."""
    copy = tmp_path / "my projects" / "checkout"
    (copy / "lirank_ext").mkdir(parents=True)
    for folder in ("csrc", "kernels"):
        shutil.copytree(REPOSITORY / folder, copy / folder)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    for package in ("benchmarks", "lirank_ext"):
        for source in (REPOSITORY / package).rglob("__init__.py"):
            target = copy / source.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    shutil.copy(REPOSITORY / "lirank_ext/_version.py", copy / "lirank_ext/_version.py")
    return copy


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def compiler(folder: Path) -> Path:
    return program(
        folder / "g++", COMPILER.format(python=sys.executable, log=str(folder / "log.txt"))
    )


def build(
    checkout: Path, before: str = "", command: str = "build_ext --build-lib out", **environment: str
) -> subprocess.CompletedProcess:
    """``setup.py build_ext`` with its result in ``out``, or another command."""
    code = (
        "import sys, runpy\n"
        f"{before}\n"
        f"sys.argv = ['setup.py', *{command.split()!r}]\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    (checkout / "out").mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in BUILD_VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**kept, "FORCE_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_a_folder_and_a_compiler_with_spaces_in_their_paths(checkout, tmp_path):
    cxx = compiler(tmp_path / "my compiler")
    done = build(checkout, CXX=str(cxx))
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in (checkout / "out/lirank_ext").iterdir()}
    assert "liblirank.so" in made and any(name.startswith("_C.") for name in made)
    assert "liblirank_cuda.so" not in made


def test_a_compiler_behind_a_launcher(checkout, tmp_path):
    cxx = compiler(tmp_path)
    launcher = program(tmp_path / "ccache", '#!/bin/sh\necho launched >> "$0.log"\nexec "$@"\n')
    done = build(checkout, CXX=f"{launcher} {cxx}")
    assert done.returncode == 0, done.stdout + done.stderr
    launched = (tmp_path / "ccache.log").read_text().count("launched")
    assert launched == len((tmp_path / "log.txt").read_text().splitlines()) > 10


def test_what_was_built_is_not_compiled_again_after_the_checkout_moved(checkout, tmp_path):
    cxx = compiler(tmp_path)
    assert build(checkout, CXX=str(cxx)).returncode == 0
    moved = checkout.rename(tmp_path / "elsewhere")
    (tmp_path / "log.txt").write_text("")
    assert build(moved, CXX=str(cxx)).returncode == 0
    compiled = [s for s in (tmp_path / "log.txt").read_text().splitlines() if " -c " in s]
    assert len(compiled) == 1  # the probe of the compiler


@pytest.mark.parametrize(
    ("cxx", "words"),
    [
        ("OLD", ("cannot compile C++17", "unrecognized option", "GCC 11")),
        ("no-such-compiler", ("CXX is 'no-such-compiler'", "not a program")),
    ],
)
def test_a_compiler_that_does_not_serve_is_said_at_once(checkout, tmp_path, cxx, words):
    old = program(tmp_path / "old-g++", OLD)
    done = build(checkout, CXX=str(old) if cxx == "OLD" else cxx)
    assert done.returncode == 1
    (sentence,) = [s for s in done.stderr.splitlines() if s.startswith("lirank_ext: ")]
    assert all(word in sentence for word in (*words, "LIRANK_NO_BUILD=1")), sentence
    assert "Traceback" not in done.stderr


def test_missing_headers_of_python_are_said_before_anything_is_compiled(checkout, tmp_path):
    cxx = compiler(tmp_path)
    before = (
        "import sysconfig\npaths = sysconfig.get_paths()\n"
        f"sysconfig.get_paths = lambda *a, **k: {{**paths, 'include': {str(tmp_path / 'none')!r}}}"
    )
    done = build(checkout, before, CXX=str(cxx))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Python.h is missing: install Python's headers (python3-dev" in done.stderr
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1  # the probe


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_code_that_does_not_compile_ends_in_a_sentence(checkout):
    (checkout / "csrc/errors_of_mine.cpp").write_text("#error not code\n")
    for source in (checkout / "csrc").rglob("*.cpp"):
        if source.name != "errors_of_mine.cpp":
            source.write_text("")
    done = build(checkout)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "compiling failed, see the first 'error:' above" in done.stderr
    assert "not code" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"LIRANK_NO_BUILD": "1"}, "LIRANK_NO_BUILD was set"),
        ({"PATH": "/nonexistent"}, "no C++ compiler was found"),
    ],
)
def test_an_installation_without_compiled_parts_knows_why(checkout, environment, why):
    done = build(checkout, **environment)
    assert done.returncode == 0, done.stderr
    assert f"{why}: installing as pure Python" in done.stdout
    package = checkout / "out/lirank_ext"
    assert [path.name for path in package.iterdir()] == ["_not_built.txt"]
    assert why in (package / "_not_built.txt").read_text()


@pytest.mark.parametrize(
    ("environment", "tag"),
    [
        ({}, f"-cp3{sys.version_info.minor}-"),
        ({"LIRANK_ANY_PYTHON": "1"}, "-py3-none-linux_"),
        ({"LIRANK_NO_BUILD": "1"}, "-py3-none-any.whl"),
    ],
)
def test_a_wheel_is_for_all_that_can_use_it(checkout, tmp_path, environment, tag):
    (checkout / "lirank_ext/_C.cpython-37-x86_64-linux-gnu.so").touch()
    command = "bdist_wheel --dist-dir dist"
    done = build(checkout, command=command, CXX=str(compiler(tmp_path)), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (checkout / "dist").iterdir()
    assert tag in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = [n.removeprefix("lirank_ext/") for n in content.namelist()]
    assert ("liblirank.so" in names) == (tag != "-py3-none-any.whl")
    assert any(n.startswith("_C.") for n in names) == (not environment)
    assert ("_not_built.txt" in names) == ("LIRANK_NO_BUILD" in environment)


def test_a_build_for_any_python_needs_no_headers_of_python(checkout, tmp_path):
    before = (
        "import sysconfig\npaths = sysconfig.get_paths()\n"
        f"sysconfig.get_paths = lambda *a, **k: {{**paths, 'include': {str(tmp_path / 'none')!r}}}"
    )
    done = build(checkout, before, CXX=str(compiler(tmp_path)), LIRANK_ANY_PYTHON="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in (checkout / "out/lirank_ext").iterdir()] == ["liblirank.so"]


# An isolated environment: torch cannot be imported, and `python -m pip` is this.
PIP = """
import pathlib, sys, zipfile
wanted, to = sys.argv[-1], pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
with open({log!r}, "a") as log:
    print(*sys.argv[1:], file=log)
if wanted not in {served!r}:
    sys.exit("ERROR: No matching distribution found for " + wanted)
with zipfile.ZipFile(to / "torch.whl", "w") as wheel:
    for name in ("csrc/stable/a.h", "headeronly/a.h", "csrc/inductor/aoti_torch/a.h", "other.h"):
        wheel.writestr("torch/include/torch/" + name, "")
    wheel.writestr("torch/version.py", "__version__ = '2.12.3+cpu'; cuda = None")
    wheel.writestr("torch/lib/libtorch_cpu.so", "")
"""


def isolated(checkout, tmp_path, *served, site=None):
    """A build where torch is not importable; ``site`` is the environment's own folder."""
    log = tmp_path / "pip.txt"
    log.write_text("")
    program(tmp_path / "isolated/pip/__main__.py", PIP.format(log=str(log), served=served))
    (tmp_path / "isolated/pip/__init__.py").touch()
    before = (
        "import importlib.util, sysconfig\nfind, paths = importlib.util.find_spec, "
        "sysconfig.get_paths()\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        f"paths = {{**paths, 'purelib': {str(site)!r}, 'platlib': {str(site)!r}}}\n"
        "sysconfig.get_paths = lambda *a, **k: paths"
    )
    path = str(tmp_path / "isolated")
    done = build(checkout, before, CXX=str(compiler(tmp_path)), PYTHONPATH=path)
    return done, [line.split()[-1] for line in log.read_text().splitlines()]


def test_an_isolated_build_takes_the_pytorch_of_its_environment(checkout, tmp_path):
    import torch

    done, asked = isolated(checkout, tmp_path, site=Path(torch.__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert not asked
    assert f"-I{Path(torch.__file__).parent}/include" in (tmp_path / "log.txt").read_text()


def test_without_pytorch_its_wheel_alone_is_fetched_a_cpu_one_first(checkout, tmp_path):
    done, asked = isolated(checkout, tmp_path, "torch>=2.10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked == ["torch==2.13.0+cpu", "torch>=2.10"]
    assert all("--no-deps" in s for s in (tmp_path / "pip.txt").read_text().splitlines())
    kept = {p.name for p in (checkout / "build/torch").rglob("*") if p.is_file()}
    assert kept == {"a.h", "version.py", "libtorch_cpu.stub.so"}
    compiled = (tmp_path / "log.txt").read_text()
    assert "-DLIRANK_BUILT_FOR_TORCH=2.12.3" in compiled and "-l:libtorch_cpu.stub.so" in compiled
    assert isolated(checkout, tmp_path)[1] == []  # what was fetched is kept


def test_without_any_pytorch_to_be_had_the_build_ends_in_a_sentence(checkout, tmp_path):
    done, asked = isolated(checkout, tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and len(asked) == 2
    assert "No matching distribution found for torch>=2.10" in done.stderr
    assert "install PyTorch into this environment first" in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_a_library_linked_with_headers_alone_names_the_one_to_load(tmp_path, monkeypatch):
    """The stub is not needed at run time: its name inside is that of PyTorch's own library."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    monkeypatch.setattr("setuptools.setup", lambda **k: None)
    torch = runpy.run_path(str(REPOSITORY / "setup.py"))["Torch"]
    (tmp_path / "version.py").write_text("__version__ = '2.10.0'\n")
    options = torch(tmp_path).link(["g++"])
    source = program(
        tmp_path / "op.cpp", 'extern "C" int of_torch(); int f() { return of_torch(); }'
    )
    library = tmp_path / "op.so"
    link = ["g++", "-shared", "-fPIC", str(source), *shlex.split(options), "-o", str(library)]
    subprocess.run(link, check=True)
    said = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
    assert "[libtorch_cpu.so]" in said and "stub" not in said


def installed(tmp_path: Path, *, library: bool = False, **files: str) -> str:
    """What an installation that holds these files beside the sources says of itself."""
    package = tmp_path / "lirank_ext"
    skip = shutil.ignore_patterns("*.so", "__pycache__", "kernels", "benchmarks")
    shutil.copytree(REPOSITORY / "lirank_ext", package, ignore=skip)
    shutil.copytree(REPOSITORY / "kernels", package / "kernels", ignore=skip)
    for name, text in files.items():
        (package / name.replace("__", ".")).write_text(text)
    if library:
        shutil.copy(REPOSITORY / "lirank_ext/liblirank.so", package)
    code = (
        "import lirank_ext; from lirank_ext.library.load import extension\n"
        "print(lirank_ext.build_info()['cpu'], getattr(extension, 'way', ''))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LIRANK_NO_EXT")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_info_gives_the_reason_that_the_build_left(tmp_path):
    said = installed(tmp_path, _not_built__txt="not built: the reason\n")
    assert "references only (not built: the reason)" in said


@needs_library
def test_what_was_built_for_another_python_serves_this_one_by_ctypes(tmp_path):
    said = installed(tmp_path, library=True, **{"_C__cpython-37-x86_64-linux-gnu__so": ""})
    assert "references" not in said and said.split()[-1] == "ctypes"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_a_library_of_other_sources_is_refused(tmp_path):
    source = program(tmp_path / "other.cpp", 'extern "C" int lirank_interface() { return 0; }')
    library = tmp_path / "liblirank.so"
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    from lirank_ext.library import load

    with pytest.raises(ImportError, match=r"other sources.*setup.py build_ext --inplace"):
        load._check_interface(library)
