"""The table of what works with what: every op, tried with what surrounds it.

``python -m lirank_ext.verify.matrix --write docs/reference/support.md`` tries everything, which
takes some minutes, and writes the page. Without ``--write`` the page goes to stdout.
``--cheap`` tries only what needs neither a compiler nor further processes.

No cell is written by hand. The cells of GPU kernels come from readings of ``benchmarks/gpu.sh``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..library.op import OPS, implementations
from .samples import Sample, samples

TRACED, TRIED = 4, (4, 1, 9)  # rows of a graph's example, and of the calls that are compared
NOTHING, NONE = "–", "no gradient"
FLOATS = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
INTEGERS = {"i64": torch.int64, "i32": torch.int32}
Cells = dict[str, dict[str, str]]  # of each op, by column
Try = Callable[[Sample], str]


class Differs(Exception):
    """A result is not that of the reference, or not that of the plain call."""


def equal(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> None:
    """Equal to rounding.

    Raises:
        Differs: they are not.
    """
    for one, other in zip(found, wanted, strict=True):
        one, other = one.detach(), other.detach()
        # Sums of float32 in another order, and derivatives of them that are far larger.
        size = float(other.abs().max()) if other.numel() and other.is_floating_point() else 0.0
        try:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * max(1.0, size))
        except AssertionError as error:
            raise Differs(str(error).splitlines()[0]) from error


def outcome(attempt: Try, sample: Sample) -> str:
    """What a cell says. A sentence of this package is a refusal, anything else a failure."""
    try:
        return attempt(sample)
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        refused = re.match(r"lirank::\w+: (.*)", text)
        return f"refused: {refused[1]}" if refused else f"fails: {type(error).__name__}: {text}"


# ---- backends and dtypes -------------------------------------------------------------------------


def on_cpu(sample: Sample) -> str:
    if "cpu" not in implementations(sample.name):
        return "reference"
    for rows in TRIED:
        equal(sample(*sample.inputs(rows)), by_reference(sample, sample.inputs(rows)))
    return "C++"


@torch.no_grad()
def by_reference(sample: Sample, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    sample.by_reference = True
    try:
        return sample(*inputs)
    finally:
        sample.by_reference = False


def dtypes(sample: Sample) -> str:
    """The dtypes that a call takes: of its floating tensors, and of its ids."""
    name, found = sample.name, []
    if any(t.is_floating_point() for t in sample.inputs(TRACED)) or sample.names:
        found = [key for key, dtype in FLOATS.items() if _takes(samples()[name].in_dtype(dtype))]
    ids = [i for i, t in enumerate(sample.inputs(TRACED)) if t.dtype == torch.int64]
    kinds = []
    for key, dtype in INTEGERS.items():
        inputs = [t.to(dtype) if i in ids else t for i, t in enumerate(sample.inputs(TRACED))]
        kinds += [key] if ids and _takes(sample, inputs) else []
    return " ".join([*found, *kinds]) or NOTHING


@torch.no_grad()
def _takes(sample: Sample, inputs: Iterable[Tensor] | None = None) -> bool:
    try:
        sample(*(sample.inputs(TRACED) if inputs is None else inputs))
        return True
    except (TypeError, RuntimeError) as error:  # ops raise the latter below their functions
        if "got torch." not in str(error):
            raise
        return False


def under_autocast(sample: Sample) -> str:
    """To which dtype autocast to bfloat16 casts the arguments."""
    rule = OPS[sample.name].autocast_rule
    with torch.no_grad():
        plain = sample(*sample.inputs(TRACED))
        with torch.autocast("cpu", torch.bfloat16):
            found = sample(*sample.inputs(TRACED))
    wanted = {"lower": torch.bfloat16, "float32": torch.float32}.get(rule)
    for one, other in zip(found, plain, strict=True):
        if one.dtype != (wanted or other.dtype):
            raise Differs(f"{one.dtype} by the rule {rule!r}")
    return {"lower": "lower", "float32": "float32"}.get(rule, "as given")


# ---- derivatives ---------------------------------------------------------------------------------


def leaves(sample: Sample) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """All floating tensors of a call, and a curved function of them."""
    inputs = list(sample.inputs(TRACED))
    at = [i for i, t in enumerate(inputs) if t.is_floating_point()]
    keys = [key for key, _ in sample.named_parameters()]

    def function(*given: Tensor) -> Tensor:
        call = list(inputs)
        for i, t in zip(at, given, strict=False):
            call[i] = t
        held = dict(zip(keys, given[len(at) :], strict=True))
        found = torch.func.functional_call(sample, held, tuple(call))
        return sum((t.sin().sum() for t in found if t.is_floating_point()), torch.zeros(()))

    held = [p.detach() for p in sample.parameters()]
    return [*(inputs[i] for i in at), *held], function


def differentiated(how: Callable[[Callable, list[Tensor]], Iterable[Tensor]]) -> Try:
    """Compares a kind of derivative with that of the reference."""

    def attempt(sample: Sample) -> str:
        given, function = leaves(sample)
        wanting = [t.clone().requires_grad_() for t in given]
        if not given or not (how is _by_func or function(*wanting).requires_grad):
            return NONE
        found = list(how(function, given))
        sample.by_reference = True
        try:
            equal(found, list(how(function, given)))
        finally:
            sample.by_reference = False
        return "yes"

    return attempt


def _once(function: Callable, given: list[Tensor]) -> Iterable[Tensor]:
    wanting = [t.clone().requires_grad_() for t in given]
    return torch.autograd.grad(function(*wanting), wanting)


def _twice(function: Callable, given: list[Tensor]) -> Iterable[Tensor]:
    wanting = [t.clone().requires_grad_() for t in given]
    first = torch.autograd.grad(function(*wanting), wanting, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), wanting)


def _by_func(function: Callable, given: list[Tensor]) -> Iterable[Tensor]:
    every = tuple(range(len(given)))
    tangents = tuple(t.cos() for t in given)
    return [
        *torch.func.grad(function, every)(*given),
        torch.func.jvp(function, tuple(given), tangents)[1],
    ]


def _checkpointed(function: Callable, given: list[Tensor]) -> Iterable[Tensor]:
    wanting = [t.clone().requires_grad_() for t in given]
    y = torch.utils.checkpoint.checkpoint(function, *wanting, use_reentrant=False)
    return torch.autograd.grad(y, wanting)


# ---- graphs --------------------------------------------------------------------------------------


def compiled(sample: Sample) -> str:
    torch.compiler.reset()
    graph = torch.compile(sample, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in TRIED:
        equal(graph(*sample.inputs(rows)), sample(*sample.inputs(rows)))
    return "yes"


class Star(nn.Module):
    """Takes the inputs of a sample as one tuple, whatever their number."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.sample(*inputs)


def program(module: nn.Module, inputs: tuple) -> torch.export.ExportedProgram:
    """Of a module that takes one tuple, or nested ones, with any number of rows in each tensor."""
    shapes = torch.utils._pytree.tree_map(lambda t: {0: torch.export.Dim.DYNAMIC}, inputs)
    with torch.no_grad():
        return torch.export.export(module, (inputs,), dynamic_shapes=(shapes,))


def exported(rows: int) -> Try:
    def attempt(sample: Sample) -> str:
        made, inputs = program(Star(sample), sample.inputs(TRACED)), sample.inputs(rows)
        equal(made.module()(inputs), sample(*inputs))
        return "yes"

    return attempt


# ---- GPU kernels ---------------------------------------------------------------------------------


def on_gpu(folder: Path) -> Cells:
    """The day on which each GPU backend last agreed with the reference, by committed readings.

    A later reading in which it did not takes the cell away.
    """
    found: Cells = {}
    for path in sorted(folder.glob("gpu-*.json")):
        gpu, day = re.match(r"gpu-(\w+)-(\d+-\d+-\d+)", path.name).groups()
        for row in json.loads(path.read_text(encoding="utf-8"))["verify"]:
            column = {"cuda": "CUDA", "triton": "Triton"}.get(row["backend"])
            if column is None or row["absent"]:
                continue
            if row["passed"]:
                found.setdefault(row["op"], {})[column] = f"{gpu.upper()}, {day}"
            else:
                found.get(row["op"], {}).pop(column, None)
    return found


# ---- the table -----------------------------------------------------------------------------------

CHEAP: dict[str, Try] = {
    "CPU": on_cpu,
    "dtypes": dtypes,
    "autocast": under_autocast,
    "backward": differentiated(_once),
    "double backward": differentiated(_twice),
    "torch.func": differentiated(_by_func),
    "checkpoint": differentiated(_checkpointed),
    "compile": compiled,
    "export": exported(9),
    "export, one row": exported(1),
}


def cheap() -> Cells:
    """All cells that one process tries in seconds."""
    cells: Cells = {}
    for name in samples():
        cells[name] = {}
        for column, attempt in CHEAP.items():
            torch.manual_seed(0)
            cells[name][column] = outcome(attempt, samples()[name])
    return cells


def everything(readings: Path, report: Callable[[str], None]) -> Cells:
    """All cells."""
    from .matrix_packages import onnx, packages
    from .matrix_processes import processes

    report("in this process")
    cells = cheap()
    for name, found in on_gpu(readings).items():
        if name in cells:
            cells[name].update(found)
    report("ONNX")
    for name in cells:
        cells[name]["ONNX"] = outcome(onnx, samples()[name])
    for title, tried in (("two processes", processes), ("AOTInductor", packages)):
        report(title)
        for name, found in tried().items():
            cells[name].update(found)
    return cells


def main(argv: list[str] | None = None) -> int:
    """Try, and write the page."""
    from .matrix_page import page

    warnings.simplefilter("ignore")  # of PyTorch's exporters, about themselves
    readings = Path("benchmarks/results")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes")
    parser.add_argument("--cheap", action="store_true", help="only what one process tries")
    parser.add_argument(
        "--readings", type=Path, default=readings, metavar="FOLDER", help=f"default {readings}"
    )
    args = parser.parse_args(argv)
    if not args.cheap and not args.readings.is_dir():
        parser.error(f"--readings: wanted the folder of the GPU readings, got {args.readings}")

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    text = page(cheap() if args.cheap else everything(args.readings, report))
    if args.write is None:
        print(text, end="")
    else:
        args.write.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
