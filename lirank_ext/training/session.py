"""From files to a trainer, and from a trained model to a folder and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ..datasets import DataError
from ..models import ConfigError, LiRank
from . import checkpoint
from .checkpoint import CheckpointError
from .features import Converter
from .files import Broken, Source
from .loader import Loader, Split
from .settings import Config
from .trainer import Trainer

MODEL = "model.safetensors"
Paths = Sequence[str | Path]


def open_loader(
    config: Config,
    paths: Paths,
    broken: Broken,
    *,
    labels: bool = True,
    split: Split | None = None,
    valid: bool = False,
    shuffle: bool = False,
) -> Loader:
    """Batches of files, as a configuration describes their columns.

    Raises:
        DataError: a file or a column is missing.
    """
    settings, schema = config.training, config.model.schema
    converter = Converter(schema, broken, labels, config.model.history.max_len)
    return Loader(
        Source(paths, converter.columns, broken),
        converter,
        settings.batch_size,
        settings.shuffle_rows,
        split,
        valid,
        shuffle,
        settings.seed,
        settings.prefetch,
    )


def open_trainer(
    config: Config,
    paths: Paths,
    valid_paths: Paths = (),
    *,
    output: Path | None = None,
    device: str | torch.device = "cpu",
    bar: bool = False,
    broken: Broken | None = None,
) -> Trainer:
    """A trainer on files.

    Args:
        config: model and training.
        paths: files to train on; a share of their rows validates where there are no others.
        valid_paths: files to validate on.
        output: folder for checkpoints.
        device: of the model.
        bar: show a progress bar.
        broken: counts broken rows.

    Raises:
        DataError: a file or a column is missing.
    """
    settings = config.training
    if broken is None:
        broken = Broken(settings.bad_rows == "skip")
    split = None if valid_paths else Split(settings.valid, seed=settings.seed)
    train = open_loader(config, paths, broken, split=split, shuffle=True)
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
    share = settings.valid if split is not None else 0.0
    steps = math.ceil(total * (1 - share) / settings.batch_size)
    files = [[f.path.name, f.path.stat().st_size] for f in train.source.files]
    files += [[Path(p).name, Path(p).stat().st_size] for p in valid_paths]
    return Trainer(config, train, valid, steps, output, device, files, bar)


def save_model(folder: Path, model: LiRank, config: Config) -> Path:
    """Write the weights and the configuration; one file, complete or not there."""
    path = folder / MODEL
    checkpoint.save(path, dict(model.state_dict()), {"config": dataclasses.asdict(config)})
    return path


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[LiRank, Config]:
    """The model in a folder, or in a file of :func:`save_model`, in evaluation mode.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not a model's.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    tensors, content = checkpoint.load(path)
    if "progress" in content:
        raise CheckpointError(f"{path}: a checkpoint of a training, where a model was wanted")
    try:
        config = Config.from_dict(content["config"])
        model = LiRank(config.model)
        model.load_state_dict(tensors)
    except (ConfigError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its weights and configuration differ ({reason})") from error
    return model.to(device).eval(), config
