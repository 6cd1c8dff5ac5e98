"""The parts of a LiRank model that a configuration switches on and off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn._common import ConstantBuffers, refuse
from ..nn.cross import AttentionCross, LowRankCross, ResidualCrossNet
from ..nn.cross_net import LowRankCrossNet
from ..nn.gated_mlp import GatedMLP
from ..nn.hashed_embedding import HashedEmbeddingBag
from ..nn.history import HistoryEncoder
from ..nn.multi_task import GroupedTowers, HardShared
from ..nn.multi_task_experts import PLE, MMoE
from .config import MLP, Cross, Embedding, Head, HistoryBlock, Table


def safe(name: str) -> str:
    """A name that nn.ModuleDict accepts: without dots, and not one of its own attributes."""
    return "t_" + name.replace(".", "_dot_")


def by_rows(owner: str, pooled: Tensor, rows: int | None, columns: int, name: str) -> Tensor:
    """(rows * columns, dim) -> (rows, columns, dim)."""
    bags = pooled.shape[0]
    if columns == 1:
        return pooled.unsqueeze(1)
    if rows is not None and torch.compiler.is_exporting():
        # The exported program would refuse a single row if the sizes were compared here: PyTorch
        # takes inputs to have at least two rows. So a wrong size makes an index out of range.
        count = rows * columns
        index = torch.arange(count, device=pooled.device) + (bags - count) * bags
        return pooled.index_select(0, index).view(rows, columns, pooled.shape[1])
    if bags % columns or (rows is not None and bags != rows * columns):
        refuse(owner, name, f"{columns} bags for every row", (bags,))
    return pooled.unflatten(0, (-1, columns))


def make_table(block: Embedding, table: str) -> HashedEmbeddingBag:
    size = block.tables.get(table, Table())
    buckets = size.num_buckets or block.num_buckets
    remainders = size.num_remainders or block.num_remainders
    made = HashedEmbeddingBag(block.dim, buckets, remainders, block.mode, prehashed=True)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(block.init_norm)
    return made


class CrossStack(nn.Module):
    """Cross layers of one kind, applied one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        crossed = x
        for layer in self.layers:
            crossed = layer(x, crossed)
        return crossed

    score = LowRankCrossNet.score  # asks for ``layers``, whatever they are


def make_cross(width: int, block: Cross) -> nn.Module | None:
    """The enabled cross stacks for an input of this width, or None if there are none."""
    # A rank above the width costs more than a full matrix and gains nothing.
    rank = min(block.rank, width)
    attention_rank = min(block.attention_rank or block.rank, width)
    attention_rank -= attention_rank % block.token_dim
    options = (block.temperature, block.learn_temperature, block.token_dim, block.skip)
    if block.low_rank and block.attention:
        sizes = (width, rank, block.num_layers, attention_rank)
        return ResidualCrossNet(*sizes, *options, merge=block.merge)
    if block.low_rank:
        return CrossStack([LowRankCross(width, rank) for _ in range(block.num_layers)])
    if block.attention:
        layers = range(block.num_layers)
        return CrossStack([AttentionCross(width, attention_rank, *options) for _ in layers])
    return None


class Interactions(nn.Module):
    """A cross net and a gated MLP on the same input, or the input itself if both are off."""

    def __init__(self, width: int, cross: Cross, mlp: MLP) -> None:
        super().__init__()
        self.cross = make_cross(width, cross)
        self.mlp = None
        if mlp.enabled:
            options = (mlp.gate, mlp.batch_norm, mlp.dropout)
            self.mlp = GatedMLP([width, *mlp.dims], *options, linear_output=False)
        crossed = 0 if self.cross is None else getattr(self.cross, "out_dim", width)
        self.out_dim = crossed + (mlp.dims[-1] if mlp.enabled else 0) or width

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, out_dim)."""
        parts = [part(x) for part in (self.cross, self.mlp) if part is not None]
        return torch.cat(parts, dim=1) if parts else x


class SharedHead(nn.Module):
    """One :class:`Interactions` for all tasks, then a multi-task head."""

    def __init__(
        self, width: int, groups: list[list[int]], cross: Cross, mlp: MLP, head: Head
    ) -> None:
        super().__init__()
        self.interactions = Interactions(width, cross, mlp)
        self.towers_of = make_head(self.interactions.out_dim, groups, head)

    @property
    def towers(self) -> nn.ModuleList:
        return self.towers_of.towers

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> logits (B, T)."""
        return self.towers_of(self.interactions(x))


def make_head(width: int, groups: list[list[int]], head: Head) -> nn.Module:
    tasks = sum(map(len, groups))
    options = (head.gate, head.batch_norm, head.dropout)
    if head.kind == "mmoe":
        sizes = (head.num_experts, head.expert_dims, head.tower_dims)
        return MMoE(width, tasks, *sizes, *options)
    if head.kind == "ple":
        counts = (head.num_layers, head.num_own_experts, head.num_shared_experts)
        return PLE(width, tasks, *counts, head.expert_dims, head.tower_dims, *options)
    if head.kind == "hard":
        return HardShared(width, tasks, head.shared_dims, head.tower_dims, *options)
    return GroupedTowers(width, groups, head.shared_dims, head.tower_dims, *options)


class SeparateHead(ConstantBuffers):
    """Separate :class:`Interactions` and a separate tower for every group of tasks."""

    column: Tensor

    def __init__(
        self, width: int, groups: list[list[int]], cross: Cross, mlp: MLP, head: Head
    ) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(Interactions(width, cross, mlp) for _ in groups)
        options = (head.gate, head.batch_norm, head.dropout)
        self.towers = nn.ModuleList(
            GatedMLP([inner.out_dim, *head.tower_dims, len(group)], *options)
            for inner, group in zip(self.interactions, groups, strict=True)
        )
        tasks = [task for group in groups for task in group]
        self.constant("column", [tasks.index(t) for t in range(len(tasks))])

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> logits (B, T)."""
        pairs = zip(self.interactions, self.towers, strict=True)
        logits = torch.cat([tower(inner(x)) for inner, tower in pairs], dim=1)
        return logits.index_select(1, self.column)


class HistoryFeature(nn.Module):
    """Encodes past items together with the candidate. Items are looked up in its table."""

    def __init__(self, block: HistoryBlock, dim: int, has_actions: bool) -> None:
        super().__init__()
        action_dim = block.action_dim if has_actions else 1
        fused = 2 * dim + action_dim
        # The heads must divide the width. If they do not, the steps are projected to the next
        # multiple.
        width = block.width or -(-fused // block.num_heads) * block.num_heads
        self.actions = (
            HashedEmbeddingBag(action_dim, 1000, 1, prehashed=True) if has_actions else None
        )
        self.encoder = HistoryEncoder(
            dim,
            action_dim,
            dim,
            block.num_layers,
            block.num_heads,
            block.last,
            block.max_len,
            width=None if width == fused else width,
            feed_forward=block.feed_forward,
            dropout=block.dropout,
            positions=block.positions,
        )
        self.out_dim = self.encoder.out_dim

    def forward(
        self,
        table: HashedEmbeddingBag,
        candidate: Tensor,
        items: Tensor,
        lengths: Tensor,
        actions: Tensor | None,
    ) -> Tensor:
        """candidate: (B, dim); items, actions: (B, L) hashes, newest first -> (B, out_dim)."""
        return self.encoder(*self._steps(table, items, actions), candidate, lengths)

    def score(
        self,
        counts: Tensor,
        table: HashedEmbeddingBag,
        candidate: Tensor,
        items: Tensor,
        lengths: Tensor,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Histories (R, L) of requests with ``counts`` candidates (N, dim) -> (N, out_dim)."""
        return self.encoder.score(*self._steps(table, items, actions), candidate, counts, lengths)

    def _steps(
        self, table: HashedEmbeddingBag, items: Tensor, actions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the past items and of their actions."""
        past = look_up(table, items)
        if self.actions is None:
            return past, past.new_zeros(*items.shape, 1)
        return past, look_up(self.actions, actions)


def look_up(table: HashedEmbeddingBag, ids: Tensor) -> Tensor:
    """(B, L) hashes -> (B, L, dim). Every id is a bag of its own."""
    offsets = torch.arange(ids.numel(), device=ids.device)
    return table(ids.reshape(-1), offsets).unflatten(0, ids.shape)
