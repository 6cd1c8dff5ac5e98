"""Verifies one wheel on several releases of PyTorch and several Pythons.

``python .ci/torch_releases.py WHEEL 2.10.0 2.14.1 [--python PYTHON ...] [--out FILE]`` installs
every release into a folder of its own under ``.cache/releases``, runs ``verify`` and the checks of
``torch_releases_smoke.py`` with the wheel on it, and prints a table. It ends with 1 if any failed.

A PyTorch with CUDA needs 3 GB of NVIDIA's libraries to be imported at all. Nothing here runs on a
GPU, so they are replaced by stubs: for every library that is missing, one that has the functions
that PyTorch asks of it, each of which answers "no device". That takes binutils and gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "releases"
LEFT_OUT = ("nvidia", "cuda", "triton")  # what a release needs for a GPU only
NO_DEVICE = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE
ANSWER = {"x86_64": "mov ${}, %eax; ret", "aarch64": "mov w0, #{}; ret"}


def out_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- a release ---------------------------------------------------------------------------


def installed(release: str, python: str) -> tuple[Path, str]:
    """The folder of a release for a Python, and that Python's version. It is kept."""
    version = out_of(python, "-c", "import platform; print(platform.python_version())").strip()
    release = newest(python) if release == "newest" else release
    folder = CACHE / f"torch-{release}-python-{version}"
    if folder.is_dir():
        return folder, version
    scratch = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    pip_install(python, scratch, "--no-deps", f"torch=={release}")
    pip_install(python, scratch, "numpy", *requirements(scratch))
    make_stubs(scratch / "torch" / "lib")
    scratch.rename(folder)
    return folder, version


def newest(python: str) -> str:
    """The newest release that pip finds for a Python."""
    asked = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "-q"]
    said = out_of(*asked, "--report", "-", "torch")
    return json.loads(said)["install"][0]["metadata"]["version"]


def pip_install(python: str, target: Path, *what: str | Path) -> None:
    pip = [python, "-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", target, *what], check=True)


def requirements(folder: Path) -> list[str]:
    """What the installed release needs on a CPU, without what its extras and other systems do."""
    metadata = next(folder.glob("torch-*.dist-info")) / "METADATA"
    found = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist", [])
    wanted = [line for line in found if "extra ==" not in line]
    return [line for line in wanted if not line.startswith(LEFT_OUT)]


# ---- stubs -------------------------------------------------------------------------------


def make_stubs(folder: Path) -> None:
    """Libraries that stand in for those that the libraries in ``folder`` need and lack.

    They lie in the folder, where PyTorch's own run path finds them.
    """
    libraries = [path for path in folder.iterdir() if ".so" in path.name and path.is_file()]
    needed, wanted, versions, defined = set(), set(), {}, set()
    for library in libraries:
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", out_of("readelf", "-dW", library)))
        versions |= file_of_versions(out_of("readelf", "-VW", library))
        for line in out_of("readelf", "--dyn-syms", "-W", library).splitlines():
            fields = line.split()
            if len(fields) < 8 or fields[4] not in ("GLOBAL", "WEAK"):
                continue
            name, _, version = fields[7].partition("@")
            if fields[6] != "UND":
                defined.add(name)
            elif fields[4] == "GLOBAL":
                wanted.add((name, version))
    others = {name: loaded(name) for name in needed - {p.name for p in libraries}}
    missing = {name for name, library in others.items() if library is None}
    system = [library for library in others.values() if library is not None]
    by_library: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in missing}
    bare = [name for name, version in wanted if not version and name not in defined]
    bare = [n for n in bare if not is_python(n) and not any(hasattr(lib, n) for lib in system)]
    for name, version in wanted:
        if versions.get(version) in missing:
            by_library[versions[version]][version].append(name)
    for name, symbols in by_library.items():
        symbols[""] = bare  # a name without a version may be in any of them
        make_stub(folder / name, symbols)


def file_of_versions(text: str) -> dict[str, str]:
    """From ``readelf -V``: which library gives a version of symbols."""
    found, file = {}, ""
    for line in text.splitlines():
        if match := re.search(r"File: (\S+)", line):
            file = match[1]
        elif file and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            found[match[1]] = file
    return found


def loaded(name: str) -> ctypes.CDLL | None:
    """A library of the system, or None if it has none of that name."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def is_python(symbol: str) -> bool:
    return symbol.startswith(("Py", "_Py"))


def make_stub(path: Path, symbols: dict[str, list[str]]) -> None:
    answer = ANSWER[platform.machine()].format(NO_DEVICE)
    names = sorted({name for group in symbols.values() for name in group})
    code = [f".globl {n}\n.type {n}, %function\n{n}: {answer}\n" for n in names]
    code.append('.section .note.GNU-stack,"",%progbits\n')
    groups = [f"{v} {{ global: {'; '.join(n)}; }};" for v, n in symbols.items() if v]
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch) / "stub.s", Path(scratch) / "versions"
        source.write_text("".join(code))
        script.write_text("\n".join(groups))
        link = [f"-Wl,--version-script={script}"] if groups else []
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{path.name}", *link]
        subprocess.run([*command, source, "-o", path], check=True)


# ---- the checks --------------------------------------------------------------------------


def check(wheel: Path, release: str, python: str) -> dict[str, object]:
    """One row of the table."""
    start = time.monotonic()
    folder, version = installed(release, python)
    seconds = time.monotonic() - start
    row: dict[str, object] = {"torch": release, "python": version, "install_s": round(seconds)}
    with tempfile.TemporaryDirectory() as scratch:
        pip_install(python, Path(scratch) / "site", "--no-deps", wheel.resolve())
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIRANK_")}
        environment["PYTHONPATH"] = f"{scratch}/site{os.pathsep}{folder}"
        for name, arguments in (
            ("verify", ("-m", "lirank_ext", "verify", "--json", f"{scratch}/verify.json")),
            ("smoke", (str(ROOT / ".ci" / "torch_releases_smoke.py"), f"{scratch}/smoke.json")),
        ):
            start = time.monotonic()
            done = subprocess.run(
                [python, *arguments], cwd=scratch, env=environment, capture_output=True, text=True
            )
            result = Path(scratch) / f"{name}.json"
            row[name] = json.loads(result.read_text()) if result.is_file() else {}
            row[f"{name}_s"] = round(time.monotonic() - start)
            if done.returncode:
                row["failed"] = f"{name}: {(done.stderr or done.stdout).strip()[-2000:]}"
                break
    return row


def table(wheel: Path, rows: list[dict]) -> str:
    lines = [f"`{wheel.name}`, {wheel.stat().st_size / 1e6:.2f} MB", ""]
    lines += [
        "| torch | Python | `verify` | compile, export, package, strings |",
        "|---|---|---|---|",
    ]
    for row in rows:
        verify, smoke = row.get("verify") or {}, row.get("smoke") or {}
        cases = sum(part["cases"] for part in verify["rows"]) if verify else 0
        counted = f"{cases} cases passed" if verify and verify["passed"] else "failed"
        passed = ", ".join(smoke.get("passed", ())) or "failed"
        torch = smoke.get("torch", row["torch"])
        lines.append(f"| {torch} | {row['python']} | {counted} | {passed} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("release", nargs="+", help="a torch: 2.10.0, or newest")
    parser.add_argument("--python", action="append", help="an interpreter (default: this one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    rows = []
    for python in options.python or [sys.executable]:
        for release in options.release:
            rows.append(check(options.wheel, release, python))
            print(f"torch {release}: {rows[-1].get('failed', 'passed')}", flush=True)
    text = table(options.wheel, rows)
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
