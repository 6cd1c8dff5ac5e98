"""Tries every op in ONNX and in packages of AOTInductor, run by Python and by C++."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..library.build_info import library_path
from ..ops.decompositions import decompositions
from .matrix import TRACED, TRIED, Cells, Star, equal, outcome, program
from .samples import Sample, samples

SIZES = tuple(rows for rows in TRIED if rows != TRACED)

RUNNER = r"""
// Runs a package on saved inputs: runner LIBRARY PACKAGE INPUTS OUTPUTS
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <fstream>
#include <iostream>
#include <iterator>

int main(int, char** argv) {
  if (!dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL)) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  std::ifstream in(argv[3], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  const auto given = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> inputs;
  for (const auto& value : given.toListRef()) {
    inputs.push_back(value.toTensor());
  }
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  std::vector<c10::IValue> outputs;
  for (const auto& output : loader.run(inputs)) outputs.push_back(output);
  const auto saved = torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(outputs)));
  std::ofstream(argv[4], std::ios::binary).write(saved.data(), saved.size());
}
"""


def onnx(sample: Sample) -> str:
    """Convert by ``decompositions()`` and run with onnxruntime."""
    if not {sample.name} & {overload.name().split("::")[1] for overload in decompositions()}:
        return "no decomposition"
    import onnxruntime

    plain = program(Star(sample), sample.inputs(TRACED)).run_decompositions(decompositions())
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "op.onnx")
        try:
            torch.onnx.export(plain, dynamo=True, verbose=False).save(path)
        except torch.onnx.OnnxExporterError:
            return "no conversion"  # such as of aten's bit cast
        session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for rows in SIZES:
        inputs = sample.inputs(rows)
        feed = dict(zip(names, (t.numpy() for t in inputs), strict=True))
        equal(map(torch.from_numpy, session.run(None, feed)), sample(*inputs))
    return "yes"


class Every(nn.Module):
    """Calls all samples, so that one package has all ops."""

    def __init__(self, every: dict[str, Sample]) -> None:
        super().__init__()
        self.every = nn.ModuleDict(every)

    def forward(self, inputs: dict[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
        return {name: sample(*inputs[name]) for name, sample in self.every.items()}


def packages() -> Cells:
    """The columns of AOTInductor: one package with all ops, or one for each where that fails."""
    every = samples()
    with tempfile.TemporaryDirectory() as folder:
        together = _packaged(every, Path(folder))
        if all(cell == "yes" for found in together.values() for cell in found.values()):
            return together
        cells: Cells = {}
        for name, sample in every.items():
            alone = Path(folder) / name
            alone.mkdir()
            cells |= _packaged({name: sample}, alone)
        return cells


def _packaged(every: dict[str, Sample], folder: Path) -> Cells:
    """Both columns for the ops of one package."""
    first, path = next(iter(every.values())), str(folder / "every.pt2")
    made = outcome(lambda _: _compiled(every, path), first)
    if made != "yes":
        return {name: {"AOTInductor, Python": made, "AOTInductor, C++": made} for name in every}
    by = {"AOTInductor, Python": _by_python, "AOTInductor, C++": _by_program}
    cells: Cells = {name: {} for name in every}
    for column, run in by.items():
        found: dict[int, dict[str, list[Tensor]]] = {}
        ran = outcome(lambda _, run=run, found=found: _run(run, every, path, folder, found), first)
        for name, sample in every.items():
            if ran == "yes":
                cells[name][column] = outcome(lambda s, found=found: _same(s, found), sample)
            else:
                cells[name][column] = ran
    return cells


def _compiled(every: dict[str, Sample], path: str) -> str:
    made = program(Every(every), _inputs(every, TRACED))
    torch._inductor.aoti_compile_and_package(made, package_path=path)
    return "yes"


def _inputs(every: dict[str, Sample], rows: int) -> dict[str, tuple[Tensor, ...]]:
    return {name: sample.inputs(rows) for name, sample in every.items()}


def _run(run, every, path: str, folder: Path, found: dict) -> str:
    """Results of each op by number of rows."""
    for rows in SIZES:
        inputs = _inputs(every, rows)
        results = iter(run(path, inputs, folder))
        with torch.no_grad():
            counts = {name: len(sample(*inputs[name])) for name, sample in every.items()}
        found[rows] = {name: [next(results) for _ in range(n)] for name, n in counts.items()}
    return "yes"


def _same(sample: Sample, found: dict[int, dict[str, list[Tensor]]]) -> str:
    for rows in SIZES:
        equal(found[rows][sample.name], sample(*sample.inputs(rows)))
    return "yes"


def _by_python(path: str, inputs: dict[str, tuple[Tensor, ...]], folder: Path) -> list[Tensor]:
    found = torch._inductor.aoti_load_package(path)(inputs)
    return torch.utils._pytree.tree_leaves(found)


def _by_program(path: str, inputs: dict[str, tuple[Tensor, ...]], folder: Path) -> list[Tensor]:
    runner = folder / "runner"
    if not runner.exists():
        _build_runner(runner)
    given, results = folder / "inputs.pt", folder / "outputs.pt"
    torch.save(torch.utils._pytree.tree_leaves(inputs), given)
    command = [str(runner), str(library_path()), path, str(given), str(results)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the program ended with {done.returncode}: {done.stderr.strip()}")
    return list(torch.load(results))


def _build_runner(path: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    source = path.with_suffix(".cpp")
    source.write_text(RUNNER)
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O0", "-w", str(source)]
    command += ["-o", str(path), *(f"-I{folder}" for folder in include_paths())]
    for folder in library_paths():
        command += [f"-L{folder}", f"-Wl,-rpath,{folder}"]
    done = subprocess.run(
        [*command, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the program does not compile: {done.stderr.strip()}")
