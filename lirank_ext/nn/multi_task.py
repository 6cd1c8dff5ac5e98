"""Multi-task heads, which map features (B, input_dim) to one logit per task (B, num_tasks)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ._common import ConstantBuffers, check_dims, check_positive, check_shape, refuse
from .gated_mlp import GatedMLP

Options = tuple[str | None, bool, float]  # gate, batch_norm, dropout


def hidden_layers(dims: Sequence[int], options: Options) -> nn.Module:
    """An MLP whose last layer is a hidden layer too, or the identity if there are no layers."""
    if len(dims) < 2:
        return nn.Identity()
    return GatedMLP(dims, *options, linear_output=False)


def make_towers(
    dim: int, tower_dims: Sequence[int], outputs: Sequence[int], options: Options
) -> nn.ModuleList:
    return nn.ModuleList(GatedMLP([dim, *tower_dims, n], *options) for n in outputs)


class GroupedTowers(ConstantBuffers):
    """A shared bottom, then one tower per group of tasks, with one output per task of the group.

    LiRank groups tasks by meaning and positive rate (like with contribution, comment with share).
    The widths and depths of all heads here are free choices. Every layer except the last layer of a
    tower is a hidden layer of :class:`GatedMLP`.

    Args:
        input_dim: width of the features.
        groups: task numbers of each group, such as ``[[0, 3], [1, 2]]``. Every task belongs to
            exactly one group.
        shared_dims: widths of the shared layers. With () the towers read the features directly.
        tower_dims: widths of a tower's hidden layers.
        gate, batch_norm, dropout: as in :class:`GatedMLP`, but without a gate by default.

    Raises:
        ValueError: an argument is out of range, or a task is missing or occurs twice.

    Source: LiRank (arXiv 2402.06859), on multi-task learning.
    """

    column: Tensor

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
        self.constant("column", [tasks.index(t) for t in range(len(tasks))])
        options = (gate, batch_norm, dropout)
        self.shared = hidden_layers([input_dim, *shared_dims], options)
        width = [input_dim, *shared_dims][-1]
        self.towers = make_towers(width, tower_dims, [len(g) for g in groups], options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_dim) -> logits (B, num_tasks). Column t is the logit of task t."""
        check_shape(type(self).__name__, "x", x, "B", self.input_dim)
        h = self.shared(x)
        logits = torch.cat([tower(h) for tower in self.towers], dim=1)
        return logits.index_select(1, self.column)

    def first_layers(self) -> list[nn.Linear]:
        """The linear layers that read the features."""
        inner = self.towers if isinstance(self.shared, nn.Identity) else [self.shared]
        return [mlp.layers[0] for mlp in inner]

    def after_first(self, results: Sequence[Tensor]) -> Tensor:
        """Results of the first layers, (B, width) each -> logits (B, num_tasks)."""
        if isinstance(self.shared, nn.Identity):
            pairs = zip(self.towers, results, strict=True)
            logits = [tower.after_first(result) for tower, result in pairs]
        else:
            h = self.shared.after_first(results[0])
            logits = [tower(h) for tower in self.towers]
        return torch.cat(logits, dim=1).index_select(1, self.column)


class HardShared(GroupedTowers):
    """A bottom shared by all tasks, then one tower per task. This is the paper's baseline.

    Args:
        input_dim, shared_dims, tower_dims, gate, batch_norm, dropout: as in :class:`GroupedTowers`.
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
