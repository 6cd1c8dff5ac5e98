"""The configuration of a LiRank model, one dataclass for each of its blocks.

The paper leaves many numbers open. Each of them is a field with a default, and the docstrings say
which defaults are the paper's. Every block can be switched off, so an ablation is a configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ._parse import ConfigError, check_at_least, check_share, parse, read_yaml, refuse_unknown
from .schema import Schema


@dataclass
class Table:
    """Size of a hashed table, ``2 * (ceil(num_buckets / num_remainders) + num_remainders)`` rows.

    None takes the value of :class:`Embedding`.
    """

    num_buckets: int | None = None
    num_remainders: int | None = None


@dataclass
class Embedding:
    """Embeddings of hashed ids. The paper uses width 30, a compression of 1000 and sums.

    Attributes:
        enabled: False drops every id, and with them the histories.
        dim: width of an embedding.
        num_buckets, num_remainders: size of a table. With the paper's 2^32 buckets a table of width
            30 takes 1 GB, so the default is smaller (a free choice).
        mode: how the ids of a cell are pooled.
        dropout: probability of dropping a whole column in training, so that the model does not
            depend on a single column (a free choice).
        init_norm: approximate norm of an id's embedding before training (a free choice). An id that
            training never sees keeps it. With a norm of 1, such an id contributes as much as a
            trained one.
        tables: sizes of individual tables, by name.
    """

    enabled: bool = True
    dim: int = 30
    num_buckets: int = 4_000_000
    num_remainders: int = 1000
    mode: Literal["sum", "mean"] = "mean"
    dropout: float = 0.0
    init_norm: float = 1.0
    tables: dict[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least(
            1, dim=self.dim, num_buckets=self.num_buckets, num_remainders=self.num_remainders
        )
        check_at_least(0, init_norm=self.init_norm)
        check_share(dropout=self.dropout)


@dataclass
class Numeric:
    """Numeric columns. The paper uses batch norm."""

    enabled: bool = True
    batch_norm: bool = True


@dataclass
class Cross:
    """Residual DCN. The paper uses two layers and two parallel stacks. The rest is a free choice.

    Attributes:
        low_rank, attention: which stacks to build. If both are False there is no cross net.
        rank: width between the low-rank maps, at most the width of the input.
        merge: how the outputs of both stacks are merged.
        num_layers, attention_rank, temperature, learn_temperature, token_dim, skip: as in
            :class:`lirank_ext.nn.ResidualCrossNet`.
    """

    low_rank: bool = True
    attention: bool = True
    num_layers: int = 2
    rank: int = 32
    attention_rank: int | None = None
    temperature: float = 1.0
    learn_temperature: bool = False
    token_dim: int = 1
    skip: bool = True
    merge: Literal["sum", "mean", "concat"] = "sum"

    def __post_init__(self) -> None:
        check_at_least(1, num_layers=self.num_layers, rank=self.rank, token_dim=self.token_dim)
        check_at_least(1, attention_rank=self.attention_rank)


@dataclass
class MLP:
    """Gated MLP, parallel to the cross net. The paper's base model has four layers of 100."""

    enabled: bool = True
    dims: list[int] = field(default_factory=lambda: [100] * 4)
    gate: Literal["tanh", "sigmoid", None] = "tanh"
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_share(dropout=self.dropout)
        if not self.dims or min(self.dims) < 1:
            raise ConfigError(f"dims: wanted at least one positive width, got {self.dims}")


@dataclass
class HistoryBlock:
    """Encoder of histories. The paper uses two layers, the last five steps and up to 100 steps.

    Attributes:
        action_dim: width of an action's embedding (a free choice). It is 1 for a history without
            actions.
        width: project the steps to this width, which num_heads must divide. None keeps the sum
            of the three embeddings, rounded up to a multiple of num_heads.
        num_layers, num_heads, last, max_len, feed_forward, dropout, positions: as in
            :class:`lirank_ext.nn.HistoryEncoder`.
    """

    enabled: bool = True
    num_layers: int = 2
    num_heads: int = 2
    last: int = 5
    max_len: int = 100
    action_dim: int = 8
    width: int | None = None
    feed_forward: int | None = None
    dropout: float = 0.1
    positions: bool = False

    def __post_init__(self) -> None:
        check_at_least(
            1, num_layers=self.num_layers, num_heads=self.num_heads, max_len=self.max_len
        )
        check_at_least(
            1, action_dim=self.action_dim, width=self.width, feed_forward=self.feed_forward
        )
        check_at_least(0, last=self.last)
        check_share(dropout=self.dropout)


@dataclass
class Head:
    """Maps the interactions to a logit per task. The paper compares all four kinds.

    Attributes:
        kind: "hard" has a tower per task, "grouped" a tower per group of tasks. "mmoe" and "ple"
            mix experts.
        interactions: "shared" has one cross net and one MLP for all tasks. "per_tower" has both for
            each tower, as Ads and Jobs do, and is only possible with "hard" and "grouped".
        groups: names of the tasks of each group. None makes one group per task.
        shared_dims: widths of the layers that the towers share. They need "hard" or "grouped", and
            "shared" interactions.
        tower_dims: hidden widths of a tower. With [] a tower is a linear layer.
        gate, batch_norm, dropout: options of towers and experts.
        expert_dims, num_experts, num_layers, num_own_experts, num_shared_experts: options of "mmoe"
            and "ple".
    """

    kind: Literal["hard", "grouped", "mmoe", "ple"] = "hard"
    interactions: Literal["shared", "per_tower"] = "shared"
    groups: list[list[str]] | None = None
    shared_dims: list[int] = field(default_factory=list)
    tower_dims: list[int] = field(default_factory=lambda: [64])
    gate: Literal["tanh", "sigmoid", None] = None
    batch_norm: bool = False
    dropout: float = 0.0
    expert_dims: list[int] = field(default_factory=lambda: [128])
    num_experts: int = 4
    num_layers: int = 2
    num_own_experts: int = 2
    num_shared_experts: int = 2

    def __post_init__(self) -> None:
        check_share(dropout=self.dropout)
        if self.interactions == "per_tower" and self.kind in ("mmoe", "ple"):
            raise ConfigError(
                f"interactions: 'per_tower' needs kind 'hard' or 'grouped', got '{self.kind}'"
            )
        if self.shared_dims and self.interactions == "per_tower":
            raise ConfigError(f"shared_dims: wanted [] with 'per_tower', got {self.shared_dims}")


@dataclass
class Calibration:
    """Isotonic calibration of every logit. Range and step are free choices.

    Attributes:
        lower, upper, step: range and width of the buckets, in logit units.
        columns: categorical columns whose embeddings shift the buckets' weights. They are the
            paper's e_i, such as device or channel.
    """

    enabled: bool = True
    lower: float = -12.0
    upper: float = 8.0
    step: float = 0.5
    columns: list[str] = field(default_factory=list)


@dataclass
class Popularity:
    """Random effects of the popularity column. They are fitted after training; see
    :class:`lirank_ext.nn.RandomEffect`."""

    enabled: bool = True
    l2: float = 1.0

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ConfigError(f"l2: wanted a positive number, got {self.l2}")


@dataclass
class Explore:
    """A posterior of each task's last layer, for Thompson sampling; see
    :class:`lirank_ext.nn.NeuralLinear`."""

    enabled: bool = False
    prior_precision: float = 1.0


@dataclass
class LiRankConfig:
    """Columns and blocks of a :class:`lirank_ext.models.LiRank`.

    Raises:
        ConfigError: a block names a column, table or task that the schema does not have.
    """

    schema: Schema = field(default_factory=Schema)
    embedding: Embedding = field(default_factory=Embedding)
    numeric: Numeric = field(default_factory=Numeric)
    history: HistoryBlock = field(default_factory=HistoryBlock)
    cross: Cross = field(default_factory=Cross)
    mlp: MLP = field(default_factory=MLP)
    head: Head = field(default_factory=Head)
    calibration: Calibration = field(default_factory=Calibration)
    popularity: Popularity = field(default_factory=Popularity)
    explore: Explore = field(default_factory=Explore)
    # Returns one of the paper's models by name. ``presets.py`` sets it, because the presets are
    # built from this class.
    preset: ClassVar[Callable[..., LiRankConfig]]

    def __post_init__(self) -> None:
        names = [c.name for c in self.schema.categorical]
        for name in self.calibration.columns:
            refuse_unknown("calibration.columns", "categorical column", name, names)
        for name in self.embedding.tables:
            refuse_unknown("embedding.tables", "table", name, list(self.schema.tables()))
        self._check_groups()

    def _check_groups(self) -> None:
        if self.head.groups is None:
            return
        tasks = [t.name for t in self.schema.tasks]
        grouped = [name for group in self.head.groups for name in group]
        for name in grouped:
            refuse_unknown("head.groups", "task", name, tasks)
        missing = [name for name in tasks if name not in grouped]
        if missing or len(grouped) != len(tasks) or not all(self.head.groups):
            wanted = f"every task exactly once ({', '.join(tasks)})"
            raise ConfigError(f"head.groups: wanted {wanted}, got {self.head.groups}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LiRankConfig:
        """Build a configuration from nested dicts, as YAML gives them.

        Raises:
            ConfigError: a key is unknown (the message suggests the nearest one), a value has the
                wrong type, or a block names something that the schema does not have.
        """
        return parse(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts that :meth:`from_dict` accepts."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> LiRankConfig:
        """Read a configuration from a YAML file.

        Raises:
            ConfigError: as in :meth:`from_dict`, or the file cannot be read.
        """
        try:
            return cls.from_dict(read_yaml(path))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None

    def save(self, path: str | Path) -> None:
        """Write the configuration to a YAML file."""
        import yaml

        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
