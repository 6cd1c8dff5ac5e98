"""A model as a folder that serves without Python: an AOTInductor package and all it needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..data.errors import DataError
from ..data.example_rows import example_rows
from ..data.json_rows import RowReader
from ..errors import UserError
from ..library.build_info import library_path
from ..library.files import replace_folder
from ..models import LiRank
from .settings import Config

FORMAT = "lirank_ext served model 1"
PACKAGE, LIBRARY, MANIFEST = "model.pt2", "liblirank.so", "manifest.json"
CONFIGURATION, EXAMPLE = "configuration.json", "example.json"
ROWS = 5  # of the example
MANY = 300  # rows of the largest batch that is compared
TOLERANCE = 1e-4  # between probabilities of the package and of the model
Features = Mapping[str, Tensor]


class ExportError(UserError):
    """A model that cannot be exported; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """The package beside the model on one batch.

    Attributes:
        batch: what it was.
        difference: the largest, between probabilities.
    """

    batch: str
    difference: float


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` wrote.

    Attributes:
        folder: where.
        manifest: content of ``manifest.json``.
        comparisons: of the loaded package with the model.
    """

    folder: Path
    manifest: dict[str, Any]
    comparisons: tuple[Comparison, ...]


class ByPosition(nn.Module):
    """Probabilities (B, T) float32 of features that are given one after the other.

    Args:
        model: a ranker.
        names: of the features, in order.
    """

    def __init__(self, model: LiRank, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *features: Tensor) -> Tensor:
        return self.model.predict(dict(zip(self.names, features, strict=True))).float()


def export_model(
    model: LiRank, config: Config, folder: str | Path, *, overwrite: bool = False
) -> Exported:
    """Write a model as a folder that serves without Python, and compare it with the model.

    The folder holds ``model.pt2`` (an AOTInductor package for any number of rows and ids),
    ``liblirank.so`` (the ops), ``configuration.json`` (the columns and how values become ids),
    ``example.json`` (rows and their probabilities) and ``manifest.json`` (versions, checksums,
    names and types of the inputs in their order). It is there as a whole or not at all. The package
    is compiled for the instruction set of this processor.

    Args:
        model: in evaluation mode on the CPU, swapped or quantized or not.
        config: its configuration.
        folder: to write.
        overwrite: replace a folder that this function wrote.

    Returns:
        What was written.

    Raises:
        ExportError: the folder is there, nothing was compiled, there is no C++ compiler, or the
            package gives other probabilities than the model.
    """
    folder = Path(os.path.abspath(folder))
    check_target(folder, overwrite)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ExportError("AOTInductor needs a C++ compiler: install g++, or name one in CXX")
    try:
        library = library_path()
    except RuntimeError as error:
        raise ExportError(str(error)) from error
    new = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    try:
        new.mkdir(parents=True)
        compared = _write(new, model.eval(), config, library)
        manifest = json.loads((new / MANIFEST).read_text())
        replace_folder(new, folder)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Exported(folder, manifest, compared)


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is an export and may be replaced.

    Raises:
        ExportError: it is.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise ExportError(f"{folder}: is there already: give --overwrite to replace it")
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder}: is no exported model, so it is not overwritten")


def _write(folder: Path, model: LiRank, config: Config, library: Path) -> tuple[Comparison, ...]:
    schema = config.model.schema
    reader = RowReader(schema, config.model.history.max_len)
    rows = example_rows(schema, ROWS)
    features = reader.features(rows)
    compile_package(model, features, folder / PACKAGE)
    shutil.copyfile(library, folder / LIBRARY)
    _write_json(folder / CONFIGURATION, dataclasses.asdict(config))
    run = load_package(folder / PACKAGE, list(features))
    batches = {
        "1 row": reader.features(rows[:1]),
        f"{ROWS} rows": features,
        "no ids": without_ids(features),
        f"{MANY} rows": reader.features(example_rows(schema, MANY)),
    }
    if schema.history:
        batches["long histories"] = with_steps(features, reader.converter.max_len)
    compared = tuple(Comparison(name, difference(run, model, b)) for name, b in batches.items())
    for one in compared:
        if not one.difference <= TOLERANCE:
            raise ExportError(
                f"the package and the model differ by {one.difference:.1e} on {one.batch}: nothing "
                "was written"
            )
    with torch.inference_mode():
        scores = model.predict(features).float().tolist()
    example = {"rows": rows, "tasks": model.task_names, "probabilities": scores}
    _write_json(folder / EXAMPLE, example)
    _write_json(folder / MANIFEST, _manifest(folder, model, features))
    return compared


def compile_package(model: LiRank, features: Features, path: Path) -> None:
    """Compile a model's probabilities to an AOTInductor package.

    Args:
        model: in evaluation mode.
        features: any that it reads, of two rows at least; the package takes their values one by
            one, in this order, with any number of rows, ids and steps of a history.
        path: of the package, which ends in ``.pt2``.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {axis: free for axis in range(t.dim() if name.startswith("history/") else 1)}
        for name, t in features.items()
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's compiler about itself
        program = torch.export.export(
            ByPosition(model, list(features)), tuple(features.values()), dynamic_shapes=(shapes,)
        )
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def load_package(path: Path, names: Sequence[str]) -> Callable[[Features], Tensor]:
    """A function from features to probabilities, as a loaded package gives them.

    Args:
        path: of a package that :func:`compile_package` wrote.
        names: of the features, in its order.
    """
    run = torch._inductor.aoti_load_package(str(path))
    return lambda features: run(*(features[name] for name in names))


def without_ids(features: Features) -> dict[str, Tensor]:
    """The same rows, none of which has an id or a history."""
    made = dict(features)
    for name, value in features.items():
        if name.startswith("ids/"):
            made[name] = value[:0]
        if name.startswith("offsets/") or name.endswith("/lengths"):
            made[name] = torch.zeros_like(value)
        if name.startswith("history/") and value.dim() == 2:
            made[name] = torch.zeros_like(value[:, :1])
    return made


def with_steps(features: Features, steps: int) -> dict[str, Tensor]:
    """The same rows with histories of up to so many steps, made of random hashes."""
    made = dict(features)
    generator = torch.Generator().manual_seed(0)
    for name, value in features.items():
        if name.startswith("history/") and value.dim() == 2:
            size = (len(value), steps)
            made[name] = torch.randint(-(2**63), 2**63 - 1, size, generator=generator)
        if name.startswith("history/") and value.dim() == 1:
            made[name] = torch.arange(steps, steps - len(value), -1).clamp(min=0)
    return made


@torch.no_grad()
def difference(run: Callable[[Features], Tensor], model: LiRank, features: Features) -> float:
    """The largest difference of a package's probabilities from the model's; NaN counts as inf."""
    wanted, got = model.predict(features).float(), run(features)
    if wanted.shape != got.shape:
        raise DataError(f"the package gives {tuple(got.shape)}, the model {tuple(wanted.shape)}")
    return float((wanted - got).abs().nan_to_num(float("inf")).max())


def _manifest(folder: Path, model: LiRank, features: Features) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "lirank_ext": __version__,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "files": {path.name: _file(path) for path in sorted(folder.iterdir())},
        "inputs": [
            {"name": name, "dtype": str(value.dtype).removeprefix("torch."),
             "shape": _shape(model, name, value)}
            for name, value in features.items()
        ],
        "outputs": [
            {"name": "probabilities", "dtype": "float32", "shape": ["rows", len(model.task_names)],
             "columns": model.task_names}
        ],
    }  # fmt: skip


def _shape(model: LiRank, name: str, value: Tensor) -> list[str | int]:
    kind, _, table = name.partition("/")
    if kind == "ids":
        return ["ids"]
    if kind == "offsets":
        return [f"rows * {len(model.config.schema.tables()[table])}"]
    if kind == "history" and value.dim() == 2:
        return ["rows", "steps"]
    return ["rows", value.shape[1]] if value.dim() == 2 else ["rows"]


def _file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if checksum is None:  # Python 3.10
            checksum = hashlib.sha256()
            while block := file.read(1 << 20):
                checksum.update(block)
    return {"bytes": path.stat().st_size, "sha256": checksum.hexdigest()}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
