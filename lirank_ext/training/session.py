"""From files to a trainer, and from a trained model to a folder and back."""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..conversion.quantize import quantize_like
from ..data.broken import BadRows
from ..data.errors import DataError
from ..data.features import Converter
from ..data.label_check import check_labels
from ..data.loader import Loader, Split
from ..data.source import Source
from ..library.huge_pages import use_huge_pages
from ..models import ConfigError, LiRank
from ..models.blocks import safe
from ..models.lirank import make_dwell
from ..nn._tagged import tags_in
from ..nn.dwell import LongDwellLabels
from . import checkpoint
from .checkpoint import CheckpointError
from .processes import ONE, Processes
from .settings import Config
from .trainer import Trainer

MODEL = "model.safetensors"
PIECE = 1 << 16  # bytes of a file that its fingerprint reads in one place
Paths = Sequence[str | Path]


def open_loader(
    config: Config,
    paths: Paths,
    broken: BadRows,
    *,
    labels: bool = True,
    split: Split | None = None,
    valid: bool = False,
    shuffle: bool = False,
    dwell: Mapping[str, LongDwellLabels] | None = None,
) -> Loader:
    """Batches of files, as a configuration describes their columns.

    Args:
        config: model and training.
        paths: the files.
        broken: what to do with broken rows.
        labels: read them too.
        split, valid: which rows; see :class:`Loader`.
        shuffle: in blocks, by the seed; rows to train on, of which the settings may leave out some.
        dwell: thresholds of the tasks that are long dwells, as :func:`dwell_of` gives them.

    Raises:
        DataError: a file or a column is missing.
    """
    settings, schema = config.training, config.model.schema
    converter = Converter(schema, broken, labels, config.model.history.max_len, dwell)
    return Loader(
        Source(paths, converter.columns, broken, schema.names),
        converter,
        settings.batch_size,
        settings.shuffle_rows,
        split,
        valid,
        shuffle,
        settings.seed,
        settings.prefetch,
        settings.negatives if shuffle else 1.0,
    )


@dataclass
class Data:
    """Files opened once, for one trainer or several.

    Attributes:
        train, valid: rows to learn from and to evaluate on; None evaluates nothing.
        rows: of the files to train on, those to validate on included.
        steps: of an epoch, about.
        files: names, sizes and checksums, which tell these data from others.
        dwell: thresholds of the tasks that are long dwells, by task.
    """

    train: Loader
    valid: Loader | None
    rows: int
    steps: int
    files: list[list[Any]]
    dwell: dict[str, LongDwellLabels]


def open_data(
    config: Config,
    paths: Paths,
    valid_paths: Paths = (),
    broken: BadRows | None = None,
    before: LiRank | None = None,
) -> Data:
    """The files of a training; see :func:`open_trainer`.

    Args:
        before: the model to go on from; its window of dwell times moves on by these rows.

    Raises:
        DataError: a file or a column is missing, or there is no row.
    """
    settings = config.training
    if broken is None:
        broken = BadRows(settings.bad_rows == "skip")
    split = None if valid_paths else Split(settings.valid, seed=settings.seed)
    train = open_loader(config, paths, broken, split=split, shuffle=True)
    check_labels(train.source, config.model.schema)
    total = train.source.count()
    if not total:
        raise DataError(f"{paths[0]}: no rows")
    valid = None
    if valid_paths:
        valid = open_loader(config, valid_paths, broken)
    elif settings.valid:
        if settings.split == "last":
            split = train.split = Split(settings.valid, True, settings.seed, total)
        valid = open_loader(config, paths, broken, split=split, valid=True)
    read = [*train.source.files, *(valid.source.files if valid_paths and valid else ())]
    files = [fingerprint(file.path) for file in read]
    dwell = _measured(config, train, dwell_of(before) if before else {})
    for loader in (train, valid):
        if loader is not None:
            loader.converter.dwell = dwell
    steps = math.ceil(total * train.share() / settings.batch_size)
    return Data(train, valid, total, steps, files, dwell)


def fingerprint(path: Path) -> list[Any]:
    """Name, size, and a checksum of pieces from the start, the middle and the end of a file."""
    size, checksum = path.stat().st_size, 0
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - PIECE)):
            file.seek(start)
            checksum = zlib.crc32(file.read(PIECE), checksum)
    return [path.name, size, checksum]


def dwell_of(model: LiRank) -> dict[str, LongDwellLabels]:
    """The thresholds of a model's long dwells, by task."""
    tasks = [t.name for t in model.config.schema.tasks if t.dwell is not None]
    return {name: copy.deepcopy(model.dwell[safe(name)]).cpu() for name in tasks}


def _measured(
    config: Config, train: Loader, before: dict[str, LongDwellLabels]
) -> dict[str, LongDwellLabels]:
    """Thresholds after one more update, by the rows to train on."""
    tasks = [t for t in config.model.schema.tasks if t.dwell is not None]
    thresholds = {t.name: before.get(t.name) or make_dwell(t.dwell) for t in tasks}
    if not tasks:
        return thresholds
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {t.name: [] for t in tasks}
    for chunk in train.source.chunks():
        for task in tasks:
            times, clusters, numbers = train.converter.dwell_of(chunk, task)
            if train.split is not None:
                mine = torch.from_numpy(~train.split.is_valid(numbers))
                times, clusters = times[mine], clusters[mine]
            parts[task.name].append((times, clusters))
    for task in tasks:
        times, clusters = (torch.cat(p) for p in zip(*parts[task.name], strict=True))
        if not len(times):
            raise DataError(f"no dwell time in column '{task.source}' to measure thresholds on")
        thresholds[task.name].update(times, clusters)
    return thresholds


def trainer_on(
    data: Data,
    config: Config,
    output: Path | None = None,
    device: str | torch.device = "cpu",
    bar: bool | str = False,
    processes: Processes = ONE,
) -> Trainer:
    """A trainer on opened files, whose columns, batches and split are those of ``config``."""
    loaders, common = (data.train, data.valid), (output, device, data.files, bar, processes)
    trainer = Trainer(config, *loaders, data.steps, *common)
    for name, labels in data.dwell.items():
        trainer.model.dwell[safe(name)].load_state_dict(labels.state_dict())
    return trainer


def open_trainer(
    config: Config,
    paths: Paths,
    valid_paths: Paths = (),
    *,
    output: Path | None = None,
    device: str | torch.device = "cpu",
    bar: bool | str = False,
    broken: BadRows | None = None,
) -> Trainer:
    """A trainer on files.

    Args:
        config: model and training.
        paths: files to train on; a share of their rows validates where there are no others.
        valid_paths: files to validate on.
        output: folder for checkpoints.
        device: of the model.
        bar: show a progress bar, under this name where it is text.
        broken: counts broken rows.

    Raises:
        DataError: a file or a column is missing.
    """
    return trainer_on(open_data(config, paths, valid_paths, broken), config, output, device, bar)


@dataclass
class ModelOnFiles:
    """A trained model, and files to use it on.

    Attributes:
        model, config: as :func:`load_model` gives them.
        loader: batches of the files' rows, in order.
        broken: the rows that could not be read.
        device: of the model.
    """

    model: LiRank
    config: Config
    loader: Loader
    broken: BadRows
    device: str


def open_model(
    folder: str | Path,
    paths: Paths,
    device: str = "cpu",
    *,
    labels: bool = True,
    skip: bool = False,
    group: str | None = None,
) -> ModelOnFiles:
    """A trained model and the files to use it on.

    Args:
        folder: see :func:`load_model`.
        paths: CSV or Parquet files.
        device: of the model.
        labels: read the labels too.
        skip: pass over broken rows.
        group: column within which rank metrics compare rows; None takes the model's own.

    Raises:
        DataError: the model or a file cannot be used.
    """
    model, config = load_model(folder, device)
    if group is not None:
        config.model.schema.group = group
    broken = BadRows(skip)
    loader = open_loader(config, paths, broken, labels=labels, dwell=dwell_of(model))
    return ModelOnFiles(model, config, loader, broken, device)


def save_model(folder: Path, model: LiRank, config: Config) -> Path:
    """Write the weights and the configuration; one file, complete or not there."""
    path = folder / MODEL
    checkpoint.save(path, dict(model.state_dict()), {"config": dataclasses.asdict(config)})
    return path


def _built_for(config: Config, tensors: dict[str, torch.Tensor], mapped: bool) -> LiRank:
    """The model that holds these tensors, with quantized tables where they are quantized."""
    quantized = any("bits" in tag for tag in tags_in(tensors).values())
    if not quantized and not mapped:
        model = LiRank(config.model)
        model.load_state_dict(tensors)
        return model
    with torch.device("meta"):  # no memory for float tables
        model = LiRank(config.model)
    quantize_like(model, tensors)
    if not mapped:  # what was read from the file may lie in its pages, which cannot be huge
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    if not mapped:
        use_huge_pages(model)
    return model


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, mmap: bool = False
) -> tuple[LiRank, Config]:
    """The model in a folder, or in a file of :func:`save_model`, in evaluation mode.

    Args:
        path: of either.
        device: to move it to.
        mmap: leave the weights where the file lies in memory, so that all processes that load it
            share one copy. What a process writes to a weight is its own, and the file stays as it
            is. The file may be replaced by another one, as this package does, but not be written
            to. Tables are not moved to huge pages.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not a model's.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    tensors, content = checkpoint.load(path)
    if "progress" in content:
        raise CheckpointError(f"{path}: a checkpoint of a training, where a model was wanted")
    try:
        content["config"]["model"]["schema"].setdefault("version", 1)  # before it was kept
        config = Config.from_dict(content["config"])
        model = _built_for(config, tensors, mmap)
    except (ConfigError, RuntimeError, KeyError) as error:
        # The first line of a refused state dict is a heading.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(f"{path}: its weights and configuration differ ({reason})") from error
    return model.to(device).eval(), config
