"""Registers, shared memory, spills and instructions of every CUDA kernel, read from the library.

``python -m lirank_ext.benchmarks.cuda_resources`` prints the table of the built library;
``--write benchmarks/results/cuda_resources.md`` keeps it. ``--before FILE...`` adds a table of an
older library, or of its object files. It needs no GPU, but Triton's cuobjdump. A kernel that spills
makes the command fail.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton

from lirank_ext.library import build_info

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE
)
# Not HFMA2: ptxas uses it to move constants.
SUMS = ("FFMA", "FADD", "FMUL", "DFMA", "DADD", "DMUL", "HADD2")


@dataclass(frozen=True, order=True)
class Resources:
    """What ptxas made of one kernel on one architecture.

    Attributes:
        loads: the most 16-byte global loads between two instructions that compute with floats: as
            many parts of rows are on their way at once, where nothing else waits for them.
        local: bytes of stack and local memory a thread; a spill, in these kernels.
    """

    kernel: str
    architecture: int
    registers: int
    shared: int
    local: int
    instructions: int
    loads: int


def _tool(name: str, *arguments: str | Path) -> str:
    command = [str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _parts(text: str) -> Iterator[tuple[int, str, str]]:
    """(architecture, symbol, text) of every function in what cuobjdump prints."""
    for of_one in re.split(r"^arch = sm_", text, flags=re.MULTILINE)[1:]:
        architecture = int(re.match(r"\d+", of_one)[0])
        for part in re.split(r"^\s*Function :? ?", of_one, flags=re.MULTILINE)[1:]:
            symbol, _, rest = part.partition("\n")
            yield architecture, symbol.strip().rstrip(":"), rest


def _names(symbols: list[str]) -> dict[str, str]:
    """Kernels as they are written: without namespaces and parameters."""
    command = ["c++filt"]
    text = subprocess.run(command, input="\n".join(symbols), capture_output=True, text=True).stdout
    found = {}
    for symbol, name in zip(symbols, text.splitlines(), strict=True):
        name = re.sub(r"\(anonymous namespace\)::|lirank::gpu::|^void ", "", name)
        found[symbol] = re.sub(r"\((?:\w+Params|.*Policy.*)\)$|\(.*\)$", "", name).replace(
            "> >", ">>"
        )
    return found


def _longest_loads(instructions: list[str]) -> int:
    most = run = 0
    for name in instructions:
        base = name.partition(".")[0]
        run = 0 if base in SUMS else run + (base == "LDG" and ".128" in name)
        most = max(most, run)
    return most


def read(library: Path) -> list[Resources]:
    """Every kernel of a library or object file on every architecture, sorted."""
    used = {part[:2]: part[2] for part in _parts(_tool("cuobjdump", "-res-usage", library))}
    names = _names(sorted({symbol for _, symbol in used}))
    found = []
    for architecture, symbol, text in _parts(_tool("cuobjdump", "--dump-sass", library)):
        fields = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", used[architecture, symbol]))
        registers, stack, shared, local = (
            int(fields[k]) for k in ("REG", "STACK", "SHARED", "LOCAL")
        )
        code = [name for name in INSTRUCTION.findall(text) if name != "NOP"]
        found.append(
            Resources(names[symbol], architecture, registers, shared, stack + local, len(code),
                      _longest_loads(code))
        )  # fmt: skip
    return sorted(found)


def own(resources: Resources) -> bool:
    """Whether the kernel is this project's: CUB's own stack is not looked at."""
    return not resources.kernel.startswith("cub::")


def table(measured: list[Resources]) -> list[str]:
    """As Markdown: a row per kernel, a column per architecture."""
    architectures = sorted({r.architecture for r in measured})
    rows: dict[str, dict[int, Resources]] = {}
    for r in measured:
        rows.setdefault(r.kernel, {})[r.architecture] = r
    head = " | ".join(f"sm_{a}" for a in architectures)
    lines = [f"| kernel | {head} |", "|---" * (1 + len(architectures)) + "|"]
    for kernel, by in rows.items():
        cells = [
            f"{by[a].registers} / {by[a].shared} / {by[a].local} / {by[a].instructions}"
            f" / {by[a].loads}"
            for a in architectures
            if a in by
        ]
        lines.append(f"| `{kernel}` | {' | '.join(cells)} |")
    return lines


HEAD = """# CUDA kernels as compiled

Registers a thread / bytes of static shared memory a block / bytes spilled a thread / instructions /
16-byte global loads between two sums, at most. Compiled, not run: no timing here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="*", type=Path, help="default: the built library")
    parser.add_argument("--before", nargs="+", default=[], type=Path, metavar="FILE")
    parser.add_argument("--write", metavar="FILE", type=Path, help="keep the table in FILE")
    options = parser.parse_args()
    built = Path(build_info.__file__).parent.parent / "liblirank_cuda.so"
    measured = sorted(r for file in options.library or [built] for r in read(file) if own(r))
    lines = [HEAD, *table(measured)]
    if options.before:
        older = sorted(r for file in options.before for r in read(file) if own(r))
        lines += ["", "## Before the look-ups kept several rows in flight", "", *table(older)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text)
    spilled = [r for r in measured if r.local]
    for r in spilled:
        print(f"{r.kernel} sm_{r.architecture}: spills {r.local} bytes a thread", file=sys.stderr)
    sys.exit(bool(spilled))


if __name__ == "__main__":
    main()
