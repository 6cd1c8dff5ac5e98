"""Rows of embedding tables that change while a model serves.

An update is a safetensors file with ``rows`` (n,) and ``values`` (n, dim). Its metadata name the
table. The files lie in the folder ``updates`` of the model that they belong to, and their names say
their order.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import lirank_ext
from lirank_ext.errors import UserError
from lirank_ext.library.files import replace
from lirank_ext.nn import HashedEmbeddingBag, QuantizedHashedEmbeddingBag

FOLDER = "updates"
PARTS = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")


class UpdateError(UserError, ValueError):
    """An update that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Table:
    """One table of a model: what it holds, its width, and its bits (None for floats)."""

    data: Tensor
    dim: int
    bits: int | None


def tables_of(model: nn.Module) -> dict[str, Table]:
    """The hashed tables of a model, by their names in its state dict."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, (HashedEmbeddingBag, QuantizedHashedEmbeddingBag)):
            bits = getattr(module, "bits", None)
            for part in PARTS:
                found[f"{path}.{part}"] = Table(getattr(module, part).detach(), module.dim, bits)
    return found


def put(model: nn.Module, name: str, rows: Tensor, values: Tensor) -> None:
    """Write rows into a table; arguments and errors are those of :func:`fitted`.

    A look-up that runs at the same time could see half a row: call it where none does.
    """
    data, made = fitted(model, name, rows, values)
    data[rows] = made


def fitted(model: nn.Module, name: str, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A table, and its new rows as it stores them, quantized if it is.

    Args:
        model: whose table it is.
        name: of the table, as :func:`tables_of` gives it.
        rows: (n,) int64, numbers of rows.
        values: (n, dim) float32.

    Raises:
        UpdateError: there is no such table, or rows or values do not fit it.
    """
    table = tables_of(model).get(name)
    if table is None:
        raise UpdateError(f"there is no table '{name}'; there are: {', '.join(tables_of(model))}")
    if rows.dim() != 1 or values.shape != (len(rows), table.dim):
        wanted = f"wanted one list of {table.dim} values for every row of '{name}'"
        raise UpdateError(f"{wanted}, got {len(rows)} rows and values of {tuple(values.shape)}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(table.data):
        raise UpdateError(f"'{name}' has the rows 0 to {len(table.data) - 1}")
    if not values.isfinite().all():
        raise UpdateError(f"'{name}': a value is not finite")
    if table.bits is not None and len(rows):
        values = lirank_ext.pack_rows(*lirank_ext.quantize_rows(values, table.bits), table.bits)
    return table.data, values.to(table.data.dtype)


def write(folder: Path, name: str, rows: Tensor, values: Tensor) -> Path:
    """Write an update file, which appears as a whole, for all workers that serve the folder."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    path = target / f"{time.time_ns():020}-{os.getpid()}.safetensors"
    replace(
        path, [save({"rows": rows.contiguous(), "values": values.contiguous()}, {"table": name})]
    )
    return path


class Applied:
    """The updates of a folder that a model has taken in."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.failed: list[str] = []

    def take(self, model: nn.Module, folder: Path) -> int:
        """Take in the files that are new; returns how many of them fitted.

        Should a file appear behind one with a later name, that one is taken in once more. So all
        workers end with the same rows, in whatever order they see the files.
        """
        there = sorted(p.name for p in (folder / FOLDER).glob("*.safetensors"))
        new = [name for name in there if name not in self.names]
        fitted = 0
        for name in (n for n in there if new and n >= new[0]):
            try:
                with safe_open(folder / FOLDER / name, "pt") as file:
                    table = (file.metadata() or {}).get("table", "")
                    put(model, table, file.get_tensor("rows"), file.get_tensor("values"))
                fitted += name in new
            except (UpdateError, SafetensorError, RuntimeError, OSError) as error:
                self.failed.append(f"{name}: {error}")
        self.names.update(new)
        return fitted


def as_tensors(rows: object, values: object) -> tuple[Tensor, Tensor]:
    """Rows and values of a JSON request.

    Raises:
        UpdateError: they are no numbers.
    """
    try:
        return torch.tensor(rows, dtype=torch.int64), torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UpdateError(f"rows and values: wanted numbers ({error})") from error
