"""The blocks that a LiRank model is made of.

The paper leaves many numbers open; each is a field with a default, and the docstrings say which
are the paper's. Every block can be switched off, so that an ablation is a configuration.
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
    """Size of a hashed table: rows are ``ceil(num_buckets / num_remainders) + num_remainders``,
    twice. None takes that of :class:`Embedding`."""

    num_buckets: int | None = None
    num_remainders: int | None = None


@dataclass
class Embedding:
    """Hashed ids. The paper: width 30, a compression of 1000, sums.

    Attributes:
        enabled: False drops every id, and the histories with them.
        dim: width of an embedding.
        num_buckets, num_remainders: of a table; with the paper's 2^32 buckets a table of width
            30 takes 1 GB, so the default is smaller (a free choice).
        mode: how the ids of a cell are pooled.
        dropout: probability of dropping a whole column in training, so that none is relied on
            alone (a free choice).
        init_norm: of an id's embedding before training, about (a free choice). An id that was
            not trained on keeps it: at 1 it speaks as loudly as a known one.
        tables: sizes of tables of their own.
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
    """Numeric columns. The paper: batch norm."""

    enabled: bool = True
    batch_norm: bool = True


@dataclass
class Cross:
    """Residual DCN. The paper: two layers, two stacks in parallel; the rest is free.

    Attributes:
        low_rank, attention: which stacks there are; none of both is no cross net.
        rank: width between the low-rank maps, cut to the input's where that is smaller.
        merge: of both stacks.
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
    """Gated MLP beside the cross net. The paper's base: four layers of 100."""

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
    """Encoder of histories. The paper: two layers, the last five steps, up to 100.

    Attributes:
        action_dim: width of an action's embedding (free); 1 where a history has no actions.
        width: project the steps to this width, which num_heads must divide; None keeps the sum
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
    """From interactions to a logit per task. The paper compares all four kinds.

    Attributes:
        kind: "hard" a tower per task; "grouped" a tower per group; "mmoe"; "ple".
        interactions: "shared" has one cross net and MLP for all tasks, "per_tower" one for each
            tower, as Ads and Jobs have ("hard" and "grouped" alone).
        groups: names of the tasks of each group; None: one group per task.
        shared_dims: of a bottom below the towers ("hard" and "grouped", "shared").
        tower_dims: hidden widths of a tower; [] is a linear one.
        gate, batch_norm, dropout: of towers and experts.
        expert_dims, num_experts, num_layers, num_own_experts, num_shared_experts: of "mmoe" and
            "ple".
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
                f"interactions: 'per_tower' goes with 'hard' or 'grouped', not with '{self.kind}'"
            )
        if self.shared_dims and self.interactions == "per_tower":
            raise ConfigError("shared_dims: towers with interactions of their own share no layer")


@dataclass
class Calibration:
    """Isotonic calibration of every logit. Range and step are free.

    Attributes:
        lower, upper, step: of the buckets, in logit units.
        columns: categorical columns whose embeddings shift the buckets' weights (the paper's
            e_i: device, channel...).
    """

    enabled: bool = True
    lower: float = -12.0
    upper: float = 8.0
    step: float = 0.5
    columns: list[str] = field(default_factory=list)


@dataclass
class Popularity:
    """Random effects of the popularity column, fitted after training; see ``RandomEffect``."""

    enabled: bool = True
    l2: float = 1.0

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ConfigError(f"l2: wanted a positive number, got {self.l2}")


@dataclass
class Explore:
    """A posterior of each task's last layer, for Thompson sampling; see ``NeuralLinear``."""

    enabled: bool = False
    prior_precision: float = 1.0


@dataclass
class LiRankConfig:
    """Columns and blocks of a :class:`lirank_ext.models.LiRank`.

    Raises:
        ConfigError: parts do not fit together.
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
    # One of the paper's models, by name; ``presets.py``, which builds them of this class, sets it.
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
        """From nested dicts, as YAML gives them.

        Raises:
            ConfigError: a key is unknown (with the nearest one), a value of the wrong type, or
                parts do not fit together.
        """
        return parse(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts that :meth:`from_dict` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> LiRankConfig:
        """From a YAML file.

        Raises:
            ConfigError: as :meth:`from_dict`, or the file cannot be read.
        """
        try:
            return cls.from_dict(read_yaml(path))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None

    def save(self, path: str | Path) -> None:
        """As a YAML file."""
        import yaml

        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
