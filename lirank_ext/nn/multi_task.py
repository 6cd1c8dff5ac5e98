"""Multi-task heads: from features (B, input_dim) to one logit per task (B, num_tasks)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ._common import check_dims, check_positive, check_shape, refuse
from .gated_mlp import GatedMLP

Options = tuple[str | None, bool, float]  # gate, batch_norm, dropout


def hidden_layers(dims: Sequence[int], options: Options) -> nn.Module:
    """An MLP whose last layer is activated too; the identity where it has no layer."""
    if len(dims) < 2:
        return nn.Identity()
    return GatedMLP(dims, *options, linear_output=False)


def make_towers(
    dim: int, tower_dims: Sequence[int], outputs: Sequence[int], options: Options
) -> nn.ModuleList:
    return nn.ModuleList(GatedMLP([dim, *tower_dims, n], *options) for n in outputs)


class GroupedTowers(nn.Module):
    """A shared bottom, then one tower per group of tasks; a tower has an output per member.

    LiRank groups by meaning and positive rate (like with contribution, comment with share).
    Widths and depths here and in the other heads are free choices. Every layer but the last of a
    tower is a hidden layer of :class:`GatedMLP`, which takes ``gate``, ``batch_norm``, ``dropout``.

    Args:
        input_dim: width of the features.
        groups: task numbers of each group, such as ``[[0, 3], [1, 2]]``; every task once.
        shared_dims: widths of the shared layers; () gives the towers the features themselves.
        tower_dims: widths of a tower's hidden layers.
        gate, batch_norm, dropout: as in :class:`GatedMLP`, but without a gate by default.

    Raises:
        ValueError: an argument is out of range, or a task is missing or occurs twice.

    Source: LiRank (arXiv 2402.06859), on multi-task learning.
    """

    def __init__(
        self,
        input_dim: int,
        groups: Sequence[Sequence[int]],
        shared_dims: Sequence[int] = (),
        tower_dims: Sequence[int] = (64,),
        gate: str | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_positive(owner, input_dim=input_dim)
        check_dims(owner, "shared_dims", shared_dims, 0)
        check_dims(owner, "tower_dims", tower_dims, 0)
        tasks = list(chain.from_iterable(groups))
        if sorted(tasks) != list(range(len(tasks))) or not all(groups) or not tasks:
            refuse(owner, "groups", "every task number from 0 on exactly once", groups)
        self.input_dim, self.num_tasks = input_dim, len(tasks)
        column = torch.tensor([tasks.index(t) for t in range(len(tasks))])
        self.register_buffer("column", column, persistent=False)
        options = (gate, batch_norm, dropout)
        self.shared = hidden_layers([input_dim, *shared_dims], options)
        width = [input_dim, *shared_dims][-1]
        self.towers = make_towers(width, tower_dims, [len(g) for g in groups], options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_dim) -> logits (B, num_tasks), column t for task t."""
        check_shape(type(self).__name__, "x", x, "B", self.input_dim)
        h = self.shared(x)
        logits = torch.cat([tower(h) for tower in self.towers], dim=1)
        return logits.index_select(1, self.column)


class HardShared(GroupedTowers):
    """A bottom shared by all tasks, then one tower per task: the paper's baseline.

    Args:
        input_dim, shared_dims, tower_dims, gate, batch_norm, dropout: as :class:`GroupedTowers`.
        num_tasks: number of tasks.

    Raises:
        ValueError: an argument is out of range.

    Source: LiRank (arXiv 2402.06859), on multi-task learning.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        shared_dims: Sequence[int] = (128,),
        tower_dims: Sequence[int] = (64,),
        gate: str | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        check_positive("HardShared", num_tasks=num_tasks)
        options = {"gate": gate, "batch_norm": batch_norm, "dropout": dropout}
        groups = [[t] for t in range(num_tasks)]
        super().__init__(input_dim, groups, shared_dims, tower_dims, **options)
