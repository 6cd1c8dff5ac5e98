"""setup.py: what it compiles with, where it can be built, and what it says where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, needs_library

pytest.importorskip("pybind11", reason="setup.py needs pybind11")
pytest.importorskip("ninja", reason="setup.py needs ninja")

# A compiler that only checks that its sources exist, and writes empty files.
COMPILER = """#!{python}
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


def build(checkout: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess:
    """``setup.py build_ext`` with its result in ``out``."""
    code = (
        "import sys, runpy\n"
        f"{before}\n"
        "sys.argv = ['setup.py', 'build_ext', '--build-lib', 'out']\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    (checkout / "out").mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "LIRANK_NO_BUILD")}
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
