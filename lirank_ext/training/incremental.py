"""Going on from a trained model: the weighted start, the penalty, and what the next one needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError
from ..data.loader import Loader, Position
from ..models import LiRank
from ..nn.incremental import IncrementalPenalty
from . import checkpoint
from .checkpoint import CheckpointError
from .optimizers import TableAdam
from .session import load_model
from .settings import Config
from .trainer import Trainer

FILE = "incremental.safetensors"


@dataclass
class PreviousRun:
    """What a finished training left for the next.

    Attributes:
        folder: where it stands.
        model, config: as :func:`load_model` gives them.
        anchors: state of its :class:`IncrementalPenalty`.
        sums: accumulators of the tables' AdaGrad, one tensor a table; of tables that Adam
            trained, what they would about be.
    """

    folder: Path
    model: LiRank
    config: Config
    anchors: dict[str, Tensor]
    sums: dict[str, Tensor]


def load_previous(folder: str | Path) -> PreviousRun:
    """The model in a folder with its anchors.

    Raises:
        CheckpointError: there is none, or it was trained with ``fisher_rows = 0``.
    """
    folder = Path(folder)
    model, config = load_model(folder)
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no Fisher information to go on from: train it with training.fisher_rows "
            "above 0"
        )
    tensors, _ = checkpoint.load(path)
    anchors, sums = checkpoint.under("anchors", tensors), checkpoint.under("sums", tensors)
    return PreviousRun(folder, model, config, anchors, sums)


def require_same_model(previous: PreviousRun, config: Config, what: str) -> None:
    """Refuse a configuration whose model is another.

    Raises:
        CheckpointError: naming the first key that differs.
    """
    key = _difference(previous.config.to_dict()["model"], config.to_dict()["model"], "model")
    if key is not None:
        raise CheckpointError(f"{what} {previous.folder}: a model of another configuration: {key}")


def _difference(there: Any, here: Any, key: str) -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(n for n in here if n not in there)]:
            inner = _difference(there.get(name), here.get(name), f"{key}.{name}")
            if inner is not None:
                return inner
        return None
    return None if there == here else f"{key} is {there!r} there and {here!r} here"


def make_penalty(model: LiRank, config: Config) -> IncrementalPenalty:
    """The penalty on the dense weights.

    The tables are left out: each step would touch every row of them, and rows without a gradient
    stay where they were in any case.
    """
    tables = {id(p) for p in model.table_parameters()}
    skip = [name for name, p in model.named_parameters() if id(p) in tables]
    settings = config.training
    return IncrementalPenalty(model, settings.forgetting, settings.cold_weight, skip)


@torch.no_grad()
def start_increment(
    trainer: Trainer, previous: PreviousRun, cold: PreviousRun | None = None
) -> None:
    """Set a fresh trainer to where an increment starts.

    The weights are ``cold_weight * w_0 + (1 - cold_weight) * w_p``, tables included; buffers and
    AdaGrad's accumulators are the last model's. Random effects start empty, as they are fitted
    to the finished model.

    Args:
        trainer: not trained yet.
        previous: the last training.
        cold: the cold start; None where the configuration's cold weight is 0.

    Raises:
        CheckpointError: the models differ, a cold weight has no cold start, or Adam is to train
            the tables.
    """
    config, model = trainer.config, trainer.model
    if config.training.table_optimizer == "adam":
        raise CheckpointError(
            "training.table_optimizer: an increment trains its tables with adagrad, because adam "
            "would also move the rows of all ids that the new rows lack"
        )
    weight = config.training.cold_weight
    if weight and cold is None:
        raise CheckpointError(f"cold_weight {weight}: name the cold start with --cold")
    dwell = {k: v for k, v in model.state_dict().items() if k.startswith("dwell.")}
    for what, given in (("--from", previous), ("--cold", cold)):
        if given is not None:
            require_same_model(given, config, what)
    model.load_state_dict({**previous.model.state_dict(), **dwell})
    for effect in model.effects or ():
        effect.ids, effect.coefficients = effect.ids[:0], effect.coefficients[:0]
    penalty = make_penalty(model, config).to(trainer.device)
    penalty.load_state_dict(previous.anchors)
    if cold is not None:
        penalty.cold_weights.copy_(cold.anchors["last_weights"])
        penalty.cold_fisher.copy_(cold.anchors["last_fisher"])
    if weight:
        penalty.start(model)
        first = dict(cold.model.named_parameters())
        tables = {id(p) for p in model.table_parameters()}
        for name, p in model.named_parameters():
            if id(p) in tables:
                p.copy_(weight * first[name].to(p.device) + (1 - weight) * p)
    for name, value in _sums(trainer).items():
        value.copy_(previous.sums[name])
    trainer.penalty = penalty


def _sums(trainer: Trainer) -> dict[str, Tensor]:
    tables = trainer.model.table_parameters()
    if not tables:
        return {}
    optimizer = trainer.optimizers[1]
    if isinstance(optimizer, TableAdam):
        start = trainer.settings.table_start / trainer.settings.batch_size**2
        return {str(i): sums + start for i, sums in enumerate(optimizer.rowwise_sums())}
    state = optimizer.state
    return {str(i): state[p]["sum"] for i, p in enumerate(tables)}


def save_increment(trainer: Trainer, folder: Path) -> int:
    """Record the finished weights and their Fisher information for the next increment.

    Args:
        trainer: after ``fit``.
        folder: where :data:`FILE` is written.

    Returns:
        The number of rows that the Fisher information rests on.

    Raises:
        DataError: the gradients are not finite, so that nothing is written.
    """
    model, rows = trainer.model, trainer.settings.fisher_rows
    penalty = trainer.penalty or make_penalty(model, trainer.config).to(trainer.device)
    try:
        used = penalty.record(model, _single_rows(trainer, rows), method="batch")
    except ValueError as error:
        raise DataError(
            f"the model is saved, but --from cannot go on from it: {error}; training.fisher_rows "
            "= 0 trains without Fisher information"
        ) from error
    tensors = checkpoint.prefixed("anchors", penalty.state_dict())
    tensors.update(checkpoint.prefixed("sums", _sums(trainer)))
    checkpoint.save(folder / FILE, tensors, {"rows": used})
    return used


def _single_rows(trainer: Trainer, rows: int) -> Iterator[tuple[Any, Tensor]]:
    """Rows drawn from the training's, each a batch of its own: its bags are ragged."""
    loader: Loader = copy.copy(trainer.train_loader)
    loader.batch_size, loader.prefetch, loader.shuffle = 1, 0, True
    for _, batch in islice(loader.epoch(Position()), rows):
        moved = batch.to(trainer.device)
        yield moved.features, moved.labels
