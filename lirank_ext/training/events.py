"""What TensorBoard shows of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.packages import need
from ..models import LiRank

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Events:
    """Writes loss, metrics and norms at every evaluation.

    Args:
        writer: takes the figures.

    Attributes:
        gradient_norm: of the last step's dense gradients, before they are clipped.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer
        self.gradient_norm: Tensor | None = None

    @classmethod
    def open(cls, folder: Path, step: int) -> Events:
        """Write to a folder; what an earlier run wrote there from ``step`` on is dropped."""
        need("tensorboard", "tensorboard")
        return cls(need("torch.utils.tensorboard").SummaryWriter(folder, purge_step=step))

    def write(self, record: dict[str, Any], model: LiRank) -> None:
        """Write an evaluation, as ``Progress.evaluations`` holds it, and the model's norms."""
        figures = {"training/loss": record["training_loss"]}
        figures |= {f"norms/{name}": value for name, value in self._norms(model).items()}
        for task, values in record["tasks"].items():
            figures |= {f"{task}/{name}": v for name, v in values.items() if v is not None}
        for name, value in figures.items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def _norms(self, model: LiRank) -> dict[str, float]:
        """Of the dense gradients, of the dense weights, and of a table's mean row."""
        norms = {} if self.gradient_norm is None else {"gradient": self.gradient_norm.item()}
        dense = [p.detach() for p in model.dense_parameters()]
        norms["dense"] = torch.nn.utils.get_total_norm(dense).item()
        for name, table in zip(model.columns, model.tables.values(), strict=True):
            for part, rows in table.named_parameters():
                norms[f"{name}/{part}"] = rows.detach().norm(dim=1).mean().item()
        return norms
