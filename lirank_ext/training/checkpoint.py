"""Checkpoints and models: one safetensors file each, complete or not there at all."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.errors import DataError
from ..data.loader import Position
from ..data.packages import need
from ..library.files import replace
from .settings import RESUMABLE

if TYPE_CHECKING:
    from .trainer import Trainer

FORMAT = "lirank_ext 2"


class CheckpointError(DataError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass
class Progress:
    """Where a training stands, but for its tensors.

    Attributes:
        step: steps done.
        position: the next batch.
        best, best_step: of the monitored metric; NaN before the first evaluation.
        worse: evaluations since then.
        drops: how often the plateau schedule divided the learning rate.
        done: the run has ended.
        loss_sum, loss_steps: of the steps since the last evaluation.
        evaluations: all of them: step, loss of the training since the last, metrics.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = math.nan
    best_step: int = 0
    worse: int = 0
    drops: int = 0
    done: bool = False
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def save(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and plain values, replacing an older file at once.

    A process killed at any moment leaves the old file or the new one, never a part.

    Args:
        path: of the file.
        tensors: by name.
        content: what JSON can hold.
    """
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(content)
    meta = {"format": FORMAT, "content": text, "checksum": _checksum(whole, text)}
    try:
        replace(path, [need("safetensors.torch").save(whole, meta)])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def save_text(path: Path, text: str) -> None:
    """Write a text file as :func:`save` writes tensors: the old file stays or the new one does.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        replace(path, [text.encode()])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of a file that :func:`save` wrote.

    Raises:
        CheckpointError: there is no such file, or it is damaged or not of this package.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    safetensors = need("safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error})") from error
    if meta.get("format") != FORMAT:
        kind = meta.get("format", "none")
        raise CheckpointError(f"{path}: wanted a file of format '{FORMAT}', got '{kind}'")
    text = meta.get("content", "")
    if meta.get("checksum") != _checksum(tensors, text):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    return tensors, json.loads(text)


def _checksum(tensors: dict[str, Tensor], content: str) -> str:
    """Over all that the file says: a flipped bit in a bin's edge or a dtype counts as much."""
    total = zlib.crc32(content.encode())
    for name in sorted(tensors):
        shape = f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}"
        total = zlib.crc32(shape.encode(), total)
        flat = tensors[name].reshape(-1)
        if flat.numel():
            total = zlib.crc32(flat.view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix/``."""
    return {f"{prefix}/{k}": v for k, v in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`prefixed` put under ``prefix/``."""
    start = f"{prefix}/"
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


def save_training(trainer: Trainer, path: Path) -> None:
    """Write everything that a training needs to go on as if nothing had stopped it."""
    tensors = prefixed("model", trainer.model.state_dict())
    tensors.update(prefixed("best", trainer.best))
    tensors.update(prefixed("average", trainer.average.values))
    for i, optimizer in enumerate(trainer.optimizers):
        tensors.update(prefixed(f"optimizer/{i}", optimizer_tensors(optimizer)))
    if trainer.penalty is not None:
        tensors.update(prefixed("penalty", trainer.penalty.state_dict()))
    tensors["rng/cpu"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(trainer.device)
    content = {
        "config": trainer.config.to_dict(),
        "data": trainer.fingerprint,
        "progress": dataclasses.asdict(trainer.progress),
    }
    save(path, tensors, content)


def load_training(trainer: Trainer, path: Path) -> None:
    """Put a training where :func:`save_training` left it, its ``progress`` included.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is of another configuration
            (but for :data:`RESUMABLE` settings) or of other data.
    """
    tensors, content = trainer.processes.load_from_first(lambda: load(path))
    if "progress" not in content:
        raise CheckpointError(f"{path}: a model, not a checkpoint of a training")
    saved, now = (_fixed_part(c) for c in (content["config"], trainer.config.to_dict()))
    require_same(path, "configuration", saved, now)
    require_same(path, "data", {"data": content["data"]}, {"data": _plain(trainer.fingerprint)})
    position = Position(*content["progress"]["position"])
    trainer.progress = Progress(**{**content["progress"], "position": position})
    trainer.model.load_state_dict(under("model", tensors))
    trainer.best = {k: v.to(trainer.device) for k, v in under("best", tensors).items()}
    average = under("average", tensors)
    trainer.average.values = {k: v.to(trainer.device) for k, v in average.items()}
    for i, optimizer in enumerate(trainer.optimizers):
        restore_optimizer(optimizer, under(f"optimizer/{i}", tensors))
    if trainer.penalty is not None:
        trainer.penalty.load_state_dict(under("penalty", tensors))
    torch.set_rng_state(tensors["rng/cpu"])
    if trainer.device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], trainer.device)


def _fixed_part(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the settings that may change while a training is under way."""
    training = {k: v for k, v in config["training"].items() if k not in RESUMABLE}
    return {**config, "training": training}


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def require_same(path: Path, what: str, saved: Any, now: Any, key: str = "") -> None:
    """Refuse a checkpoint that differs, naming the first key that does."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in [*now, *(k for k in saved if k not in now)]:
            inner = f"{key}.{name}" if key else name
            require_same(path, what, saved.get(name), now.get(name), inner)
    elif saved != now:
        raise CheckpointError(
            f"{path}: a checkpoint of another {what}: {key} was {saved!r}, now it is {now!r}"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state, by the parameter's number and the state's name."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{i}/{name}": value
        for i, p in enumerate(parameters)
        for name, value in optimizer.state[p].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, name = key.split("/", 1)
        p = parameters[int(number)]
        # AdamW keeps its step count on the CPU.
        optimizer.state[p][name] = value if name == "step" else value.to(p.device)
