"""What moves the weights: AdaGrad or Adam for tables, learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models import ConfigError, LiRank
from ..nn._common import check_number
from ..nn.hashed_embedding import HashedEmbeddingBag
from .rowwise import RowwiseAdagrad, evaluated
from .settings import Settings

# Rows that the tables may have in all for Adam, which moves every one of them at each step.
ADAM_ROWS = 1_000_000


class TableAdam(torch.optim.Adam):
    """Adam over whole embedding tables, with an L2 penalty of every row.

    For a table w with gradient g, g + l2 * w is what Adam sees. Rows without a gradient move as
    well: the penalty and the moments do not stop where a batch has no such id. A step takes time in
    proportion to the table, and the state is 8 bytes a weight.

    Args:
        params: tables (N, D) of at most :data:`ADAM_ROWS` rows in all, with sparse or dense
            gradients.
        lr: learning rate.
        l2: strength of the penalty ``l2 / 2 * |w|^2`` of all rows.

    Raises:
        ValueError: an option is out of range, or the tables have too many rows.

    Source: Adam (arXiv 1412.6980). The penalty is part of the gradient, unlike that of AdamW.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, l2: float = 0.0) -> None:
        tables = list(params)
        check_number("TableAdam", "lr", lr, "0 or more", 0, float("inf"), "[)")
        check_number("TableAdam", "l2", l2, "0 or more", 0, float("inf"), "[)")
        rows = sum(len(p) for p in tables)
        if rows > ADAM_ROWS:
            raise ValueError(
                f"TableAdam: wanted tables of at most {ADAM_ROWS:,} rows in all, as every step "
                f"moves each row, got {rows:,}"
            )
        on_cpu = all(p.device.type == "cpu" for p in tables)
        # None leaves the choice to PyTorch; its own on a CPU takes five passes over the tables.
        super().__init__(tables, lr, weight_decay=l2, fused=on_cpu or None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every row of every table that has a gradient."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.to_dense()
        super().step()
        return loss

    def rowwise_sums(self) -> list[Tensor]:
        """About what :class:`RowwiseAdagrad` would have added up by now, one tensor (N,) a table.

        The average of the squares that Adam keeps, times the number of steps.
        """
        found = []
        for group in self.param_groups:
            decay = group["betas"][1]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    found.append(torch.zeros(len(p), device=p.device))
                    continue
                steps = float(state["step"])
                found.append(state["exp_avg_sq"].mean(1) * (steps / (1 - decay**steps)))
        return found


def table_optimizer(tables: list[Tensor], settings: Settings) -> torch.optim.Optimizer:
    """What trains the tables of a model, by its settings.

    Raises:
        ConfigError: the tables have too many rows for Adam.
    """
    if settings.table_optimizer == "adagrad":
        start = settings.table_start / settings.batch_size**2
        return RowwiseAdagrad(tables, settings.table_lr, settings.table_l2, initial=start)
    rows = sum(len(p) for p in tables)
    if rows > ADAM_ROWS:
        raise ConfigError(
            f"training.table_optimizer: adam moves every row at each step, so that the tables may "
            f"have {ADAM_ROWS:,} rows in all, and they have {rows:,}: take adagrad"
        )
    return TableAdam(tables, settings.table_lr, settings.table_l2)


@contextmanager
def moving_in_backward(
    optimizers: Iterable[torch.optim.Optimizer], model: LiRank
) -> Iterator[None]:
    """Within it, AdaGrad moves tables in the backward pass, where a step looks them up once.

    The weights are those of the optimizer's own steps, up to rounding. Reference tables get
    gradients.
    """
    fused = [o for o in optimizers if isinstance(o, RowwiseAdagrad)]
    tables = [t for t in model.tables_read_once() if isinstance(t, HashedEmbeddingBag)]
    try:
        for optimizer in fused:
            for table in tables:
                optimizer.fuse(table)
        yield
    finally:
        for optimizer in fused:
            optimizer.unfuse(model)


def learning_rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on the learning rate at a step.

    Args:
        step: from 0 on.
        steps: all steps planned.
        warmup: share of them over which the factor rises linearly to 1.
        schedule: then "constant", "linear" or "cosine" (both down to 0).
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return 1 - done if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
