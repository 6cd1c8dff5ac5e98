"""A trained model that scores rows in hand, such as those of a JSON request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.json_rows import RowReader
from .session import load_model


class RowScorer:
    """Probabilities of rows that a program has in hand.

    Args:
        folder: what ``train`` or ``quantize`` wrote.
        device: of the model.
        mmap: share the weights with other processes; see :func:`load_model`.

    Attributes:
        model, config: as :func:`load_model` gives them.
        tasks: names of the probabilities.
        columns: names of the columns that a row has to have.

    Raises:
        DataError: the model cannot be used.
    """

    def __init__(
        self, folder: str | Path, device: str | torch.device = "cpu", *, mmap: bool = False
    ) -> None:
        self.model, self.config = load_model(folder, device, mmap=mmap)
        self.device = torch.device(device)
        self.reader = RowReader(self.config.model.schema, self.config.model.history.max_len)
        self.tasks, self.columns = self.model.task_names, self.reader.columns

    @torch.inference_mode()
    def score(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(N, T) float32 probabilities on the CPU, one row for each row.

        Raises:
            DataError: a row cannot be read; see :class:`lirank_ext.data.json_rows.RowReader`.
        """
        features = self.reader.features(rows)
        if self.device.type != "cpu":
            features = {name: value.to(self.device) for name, value in features.items()}
        return self.model.predict(features).float().cpu()
