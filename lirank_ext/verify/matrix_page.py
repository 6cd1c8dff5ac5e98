"""Writes the table of what works with what as a page, and reads it again."""

from __future__ import annotations

import re

import torch

from .matrix import NOTHING, Cells

TABLES = {
    "Backends and dtypes": ("CPU", "CUDA", "Triton", "dtypes", "autocast"),
    "Derivatives": ("backward", "double backward", "torch.func", "checkpoint"),
    "Graphs": (
        "compile",
        "export",
        "export, one row",
        "AOTInductor, Python",
        "AOTInductor, C++",
        "ONNX",
    ),
    "Several processes": ("DDP", "FSDP2"),
}
HEAD = """# What works with what

<!-- Written by `python -m lirank_ext.verify.matrix --write docs/reference/support.md`. -->

Every cell is the result of a try with PyTorch {torch} on a CPU, but for the GPU kernels. A result
counts where it equals that of the plain call or of the reference. The modules of `lirank_ext.nn`
are made of these ops.
"""
NOTES = {
    "Backends and dtypes": """
C++ is compared with the reference at 4, 1 and 9 rows. A cell of CUDA or Triton names the GPU and
the day on which the op last agreed there, on the kernels and cases of that day;
[Limits](../limits.md) says what has changed since. An op takes its CUDA kernel where that is built,
else a Triton kernel. `–` stands for a kernel that never ran on a GPU, or that there is none. Other
devices run the reference. Autocast: `lower` casts to its lower precision, `float32` to float32, and
`as given` leaves the dtypes alone. Dtypes are those of floating tensors or of the result, and of
ids.
""",
    "Derivatives": """
Derivatives by all floating arguments, compared with those of the reference: `backward` once,
`double backward` by a gradient of gradients, `torch.func` by `grad` and `jvp`, `checkpoint` without
reentry. An op whose arguments are all integers or bytes has no gradient.
""",
    "Graphs": """
A graph is recorded with 4 rows, any number of rows allowed, and run with others: `compile` as one
graph (`fullgraph=True`, backend `aot_eager`) at 4, 1 and 9; `export` at 9 and at 1; AOTInductor at
1 and 9, one package with all ops, run by Python and by a C++ program without Python that loads
`library_path()`; ONNX by `decompositions()`, through onnxruntime at 1 and 9
(`no conversion`: ONNX has no bit cast, which packing and unpacking need).
""",
    "Several processes": """
Two processes on gloo: gradients of the parameters equal the mean of those of one process. `–`
stands for an op without parameters that train, for which neither has anything to do.
""",
}


def page(cells: Cells) -> str:
    """The page in Markdown. Sentences of refusals stand below their table."""
    text = HEAD.format(torch=torch.__version__.split("+")[0])
    for title, columns in TABLES.items():
        there = [c for c in columns if any(c in found for found in cells.values())]
        if there:
            text += f"\n## {title}\n{NOTES[title]}\n{_table(cells, there)}"
    return text


def _table(cells: Cells, columns: list[str]) -> str:
    notes: dict[str, int] = {}
    lines = [f"| op | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, found in cells.items():
        shown = []
        for column in columns:
            word, _, why = found.get(column, NOTHING).partition(": ")
            if why:
                word += f" ({notes.setdefault(why, len(notes) + 1)})"
            shown.append(word)
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    table = "\n".join(lines) + "\n"
    if notes:
        table += "\n" + "".join(f"{n}. {_escaped(why)}.\n" for why, n in notes.items())
    return table


def _escaped(text: str) -> str:
    return re.sub(r"([<>|*_`])", r"\\\1", text).rstrip(".")


def read(text: str) -> Cells:
    """The cells of a page, without the sentences."""
    cells: Cells = {}
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|") or line.startswith("|---"):
            continue
        name, *found = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "op":
            columns = found
        else:
            words = (re.sub(r" \(\d+\)$", "", cell) for cell in found)
            cells.setdefault(name.strip("`"), {}).update(zip(columns, words, strict=True))
    return cells
