"""Multi-task heads that mix experts: MMoE and PLE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._common import check_dims, check_positive, check_shape
from .multi_task import Options, hidden_layers, make_towers


def _mix(experts: Tensor, logits: Tensor) -> Tensor:
    """experts (B, n, w) and logits (B, n) -> their mean (B, w), weighted by softmax(logits)."""
    return (logits.softmax(-1).unsqueeze(1) @ experts).squeeze(1)


class MMoE(nn.Module):
    """Multi-gate mixture of experts. Task k gets ``h_k(sum_i softmax(W_k x)_i f_i(x))``.

    Args:
        input_dim, num_tasks: as in :class:`HardShared`.
        num_experts: number of experts f, which all tasks share.
        expert_dims: widths of an expert's layers, at least one.
        tower_dims, gate, batch_norm, dropout: as in :class:`GroupedTowers`.

    Raises:
        ValueError: an argument is out of range.

    Source: MMoE (KDD 2018, doi 10.1145/3219819.3220007).
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128,),
        tower_dims: Sequence[int] = (64,),
        gate: str | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive("MMoE", input_dim=input_dim, num_tasks=num_tasks, num_experts=num_experts)
        check_dims("MMoE", "expert_dims", expert_dims, 1)
        check_dims("MMoE", "tower_dims", tower_dims, 0)
        self.input_dim, self.num_tasks, self.num_experts = input_dim, num_tasks, num_experts
        dims, options = [input_dim, *expert_dims], (gate, batch_norm, dropout)
        self.experts = nn.ModuleList(hidden_layers(dims, options) for _ in range(num_experts))
        self.gates = nn.ModuleList(
            nn.Linear(input_dim, num_experts, bias=False) for _ in range(num_tasks)
        )
        self.towers = make_towers(dims[-1], tower_dims, [1] * num_tasks, options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_dim) -> logits (B, num_tasks)."""
        check_shape("MMoE", "x", x, "B", self.input_dim)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        pairs = zip(self.gates, self.towers, strict=True)
        return torch.cat([tower(_mix(experts, gate(x))) for gate, tower in pairs], dim=1)

    def first_layers(self) -> list[nn.Linear]:
        """The linear layers that read the features: those of the experts, then the gates."""
        return [*(expert.layers[0] for expert in self.experts), *self.gates]

    def after_first(self, results: Sequence[Tensor]) -> Tensor:
        """Results of the first layers, (B, width) each -> logits (B, num_tasks)."""
        first, gates = results[: self.num_experts], results[self.num_experts :]
        pairs = zip(self.experts, first, strict=True)
        experts = torch.stack([expert.after_first(a) for expert, a in pairs], dim=1)
        pairs = zip(gates, self.towers, strict=True)
        return torch.cat([tower(_mix(experts, gate)) for gate, tower in pairs], dim=1)


class ExtractionLayer(nn.Module):
    """One layer of PLE. It maps the states of all tasks and the shared state, which is the last.

    Task k mixes its own experts, which read its state, with the shared experts. The shared gate
    mixes all experts. The last layer has no shared gate.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_tasks: int,
        own: int,
        shared: int,
        last: bool,
        options: Options,
    ) -> None:
        super().__init__()
        counts = [own] * num_tasks + [shared]
        self.experts = nn.ModuleList(
            nn.ModuleList(hidden_layers(dims, options) for _ in range(n)) for n in counts
        )
        outputs = [own + shared] * num_tasks + ([] if last else [sum(counts)])
        self.gates = nn.ModuleList(nn.Linear(dims[0], n, bias=False) for n in outputs)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        groups = [
            torch.stack([expert(x) for expert in group], dim=1)
            for group, x in zip(self.experts, states, strict=True)
        ]
        # The last layer has no shared gate for the last state.
        gates = [gate(x) for gate, x in zip(self.gates, states, strict=False)]
        return self._mixed(groups, gates)

    def first_layers(self) -> list[nn.Linear]:
        """The linear layers that read the states: those of the experts, then the gates."""
        return [*(e.layers[0] for group in self.experts for e in group), *self.gates]

    def after_first(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Results of the first layers -> states."""
        left = iter(results)
        groups = [
            torch.stack([expert.after_first(next(left)) for expert in group], dim=1)
            for group in self.experts
        ]
        return self._mixed(groups, list(left))

    def _mixed(self, groups: list[Tensor], gates: list[Tensor]) -> list[Tensor]:
        sets = [torch.cat([own, groups[-1]], dim=1) for own in groups[:-1]]
        sets.append(torch.cat(groups, dim=1))
        return [_mix(e, gate) for e, gate in zip(sets, gates, strict=False)]


class PLE(nn.Module):
    """Progressive layered extraction: stacked layers of own and shared experts, then towers.

    Args:
        input_dim, num_tasks: as in :class:`HardShared`.
        num_layers: number of extraction layers. One layer is CGC.
        num_own_experts, num_shared_experts: experts per task and shared experts in each layer.
        expert_dims, tower_dims, gate, batch_norm, dropout: as in :class:`MMoE`.

    Raises:
        ValueError: an argument is out of range.

    Source: PLE (RecSys 2020, doi 10.1145/3383313.3412236).
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        num_layers: int = 2,
        num_own_experts: int = 2,
        num_shared_experts: int = 2,
        expert_dims: Sequence[int] = (128,),
        tower_dims: Sequence[int] = (64,),
        gate: str | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"input_dim": input_dim, "num_tasks": num_tasks, "num_layers": num_layers}
        sizes.update(num_own_experts=num_own_experts, num_shared_experts=num_shared_experts)
        check_positive("PLE", **sizes)
        check_dims("PLE", "expert_dims", expert_dims, 1)
        check_dims("PLE", "tower_dims", tower_dims, 0)
        self.input_dim, self.num_tasks = input_dim, num_tasks
        counts = (num_tasks, num_own_experts, num_shared_experts)
        options = (gate, batch_norm, dropout)
        inputs = [input_dim] + [expert_dims[-1]] * (num_layers - 1)
        self.layers = nn.ModuleList(
            ExtractionLayer([dim, *expert_dims], *counts, i == num_layers - 1, options)
            for i, dim in enumerate(inputs)
        )
        self.towers = make_towers(expert_dims[-1], tower_dims, [1] * num_tasks, options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_dim) -> logits (B, num_tasks)."""
        check_shape("PLE", "x", x, "B", self.input_dim)
        states = [x] * (self.num_tasks + 1)
        for layer in self.layers:
            states = layer(states)
        return self._logits(states)

    def first_layers(self) -> list[nn.Linear]:
        """The linear layers that read the features."""
        return self.layers[0].first_layers()

    def after_first(self, results: Sequence[Tensor]) -> Tensor:
        """Results of the first layers, (B, width) each -> logits (B, num_tasks)."""
        states = self.layers[0].after_first(results)
        for layer in list(self.layers)[1:]:
            states = layer(states)
        return self._logits(states)

    def _logits(self, states: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.towers, states, strict=True)
        return torch.cat([tower(h) for tower, h in pairs], dim=1)
