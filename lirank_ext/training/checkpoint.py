"""Checkpoints: one safetensors file, complete or not there at all."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError
from ..data.packages import need

FORMAT = "lirank_ext 1"


class CheckpointError(DataError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def save(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and plain values, replacing an older file at once.

    A process killed at any moment leaves the old file or the new one, never a part.

    Args:
        path: of the file.
        tensors: by name.
        content: what JSON can hold.
    """
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    meta = {"format": FORMAT, "content": json.dumps(content), "checksum": _checksum(whole)}
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        data = need("safetensors.torch").save(whole, meta)
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


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
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error})") from error
    if meta.get("format") != FORMAT:
        found = meta.get("format", "none")
        raise CheckpointError(f"{path}: wanted a file of format '{FORMAT}', got '{found}'")
    if meta.get("checksum") != _checksum(tensors):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    return tensors, json.loads(meta["content"])


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        flat = tensors[name].reshape(-1)
        if flat.numel():
            total = zlib.crc32(flat.view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def _sync_folder(folder: Path) -> None:
    """The new name is on disk only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix/``."""
    return {f"{prefix}/{k}": v for k, v in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`prefixed` put under ``prefix/``."""
    start = f"{prefix}/"
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


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
