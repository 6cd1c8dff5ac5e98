"""What a LiRank model is made of: the columns it reads and the blocks it has.

The paper leaves many numbers open; each is a field with a default, and the docstrings say which
are the paper's. Every block can be switched off, so that an ablation is a configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..nn._common import did_you_mean
from ._parse import ConfigError, parse, read_yaml


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{what}: '{name}' is there more than once")


def _at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: wanted {least} or more, got {value}")


def _share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name}: wanted a number in [0, 1), got {value}")


@dataclass
class Categorical:
    """A column of ids; every value is hashed as ``prefix=value``.

    Attributes:
        name: of the column.
        table: the embedding table it looks up. Columns may share one.
        prefix: columns of one table that share it share the rows of equal values too, as a
            member's and a job's title do; the column's name if None.
        separator: splits a cell into several ids, pooled; None takes the cell as one id.
        edges: bounds of bins; the column then holds numbers, and the id is that of the bin.
    """

    name: str
    table: str = "ids"
    prefix: str | None = None
    separator: str | None = None
    edges: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ConfigError(f"column '{self.name}': separator: wanted text, got ''")
        if self.edges != sorted(self.edges):
            raise ConfigError(f"column '{self.name}': edges: wanted rising numbers")

    @property
    def key(self) -> str:
        """The prefix in use."""
        return self.name if self.prefix is None else self.prefix


@dataclass
class History:
    """A column of past items, each hashed as a value of the candidate's column.

    Attributes:
        name: of the column: cells of several items, or lists.
        candidate: the categorical column that the items are of.
        actions: a column of as many actions (click, like...), or None.
        separator: between the items of a cell of text.
        newest_first: their order.
    """

    name: str
    candidate: str
    actions: str | None = None
    separator: str = " "
    newest_first: bool = True

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError(f"history '{self.name}': separator: wanted text, got ''")


@dataclass
class Dwell:
    """A label that is 1 where the time spent is above the percentile of its cluster.

    The thresholds are measured on the rows trained on, one update of
    :class:`lirank_ext.nn.LongDwellLabels` for each training, and kept with the model: every
    increment measures them again. The paper: the 90th percentile (as an example), clusters of
    ranking position, content type and platform, a measurement a day.

    Attributes:
        clusters: columns whose values tell the clusters apart; none is one cluster.
        quantile, window, min_count: as in :class:`lirank_ext.nn.LongDwellLabels`.
    """

    clusters: list[str] = field(default_factory=list)
    quantile: float = 0.9
    window: int = 1
    min_count: int = 100

    def __post_init__(self) -> None:
        _refuse_twice("clusters", self.clusters)
        _at_least(1, window=self.window, min_count=self.min_count)
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile: wanted a number in (0, 1), got {self.quantile}")


@dataclass
class Task:
    """A label to predict.

    Attributes:
        name: of the task.
        column: of the labels, 0 or 1; the task's name if None.
        positive: the value that counts as 1, all others as 0; None wants 0 and 1.
        weight: of its loss. The paper's weights are not given; 1 is a free choice.
        dwell: the column holds times, and the label is "stayed long".
    """

    name: str
    column: str | None = None
    positive: str | None = None
    weight: float = 1.0
    dwell: Dwell | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError(f"task '{self.name}': weight: wanted 0 or more, got {self.weight}")
        if self.dwell is not None and self.positive is not None:
            raise ConfigError(f"task '{self.name}': a time has no positive value: leave one out")

    @property
    def source(self) -> str:
        """The column in use."""
        return self.name if self.column is None else self.column


@dataclass
class Schema:
    """The columns of a row.

    Attributes:
        numeric: columns of numbers.
        log: those of them to map by ``sign(x) log(1 + |x|)`` first: counts and amounts.
        categorical, history, tasks: see there.
        popularity: column whose values get a random effect each; see :class:`Popularity`.
    """

    numeric: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    categorical: list[Categorical] = field(default_factory=list)
    history: list[History] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    popularity: str | None = None

    def __post_init__(self) -> None:
        names = [c.name for c in self.categorical]
        _refuse_twice("numeric", self.numeric)
        _refuse_twice("categorical", names)
        _refuse_twice("history", [h.name for h in self.history])
        _refuse_twice("tasks", [t.name for t in self.tasks])
        for name in self.log:
            _refuse_unknown("log", "numeric column", name, self.numeric)
        for history in self.history:
            what = f"history '{history.name}': candidate"
            _refuse_unknown(what, "categorical column", history.candidate, names)

    @property
    def columns(self) -> list[str]:
        """All columns read as features."""
        names = [*self.numeric, *(c.name for c in self.categorical)]
        names += [h.name for h in self.history]
        names += [h.actions for h in self.history if h.actions]
        return list(dict.fromkeys([*names, *([self.popularity] if self.popularity else [])]))

    def tables(self) -> dict[str, list[Categorical]]:
        """The columns of every table, in order."""
        tables: dict[str, list[Categorical]] = {}
        for column in self.categorical:
            tables.setdefault(column.table, []).append(column)
        return tables


def _refuse_unknown(where: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(f"{where}: no {what} '{name}'{did_you_mean(name, known)}")


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
        _at_least(1, dim=self.dim, num_buckets=self.num_buckets, num_remainders=self.num_remainders)
        _at_least(0, init_norm=self.init_norm)
        _share(dropout=self.dropout)


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
        _at_least(1, num_layers=self.num_layers, rank=self.rank, token_dim=self.token_dim)
        _at_least(1, attention_rank=self.attention_rank)


@dataclass
class MLP:
    """Gated MLP beside the cross net. The paper's base: four layers of 100."""

    enabled: bool = True
    dims: list[int] = field(default_factory=lambda: [100] * 4)
    gate: Literal["tanh", "sigmoid", None] = "tanh"
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _share(dropout=self.dropout)
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
        _at_least(1, num_layers=self.num_layers, num_heads=self.num_heads, max_len=self.max_len)
        _at_least(1, action_dim=self.action_dim, width=self.width, feed_forward=self.feed_forward)
        _at_least(0, last=self.last)
        _share(dropout=self.dropout)


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
        _share(dropout=self.dropout)
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

    def __post_init__(self) -> None:
        names = [c.name for c in self.schema.categorical]
        for name in self.calibration.columns:
            _refuse_unknown("calibration.columns", "categorical column", name, names)
        for name in self.embedding.tables:
            _refuse_unknown("embedding.tables", "table", name, list(self.schema.tables()))
        self._check_groups()

    def _check_groups(self) -> None:
        if self.head.groups is None:
            return
        tasks = [t.name for t in self.schema.tasks]
        grouped = [name for group in self.head.groups for name in group]
        for name in grouped:
            _refuse_unknown("head.groups", "task", name, tasks)
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

    @classmethod
    def preset(cls, name: str, schema: Schema | None = None) -> LiRankConfig:
        """One of the paper's models: ``"feed"``, ``"jobs"`` or ``"ads"``.

        Args:
            name: of the preset.
            schema: columns to use in place of the preset's own, which are the paper's.

        Raises:
            ConfigError: the name is unknown.
        """
        from .presets import PRESETS

        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ConfigError(
                f"preset: wanted one of {known}, got '{name}'" + did_you_mean(name, PRESETS)
            )
        config = PRESETS[name]()
        return config if schema is None else with_schema(config, schema)


def with_schema(config: LiRankConfig, schema: Schema) -> LiRankConfig:
    """The blocks of ``config`` on other columns.

    Groups, table sizes and calibration columns that name what ``schema`` lacks are dropped: they
    belong to the old columns.
    """
    names = {c.name for c in schema.categorical}
    tasks = sorted(t.name for t in schema.tasks)
    groups = config.head.groups
    if groups is not None and sorted(name for group in groups for name in group) != tasks:
        groups = None
    tables = schema.tables()
    sizes = {name: size for name, size in config.embedding.tables.items() if name in tables}
    columns = [name for name in config.calibration.columns if name in names]
    return dataclasses.replace(
        config,
        schema=schema,
        head=dataclasses.replace(config.head, groups=groups),
        embedding=dataclasses.replace(config.embedding, tables=sizes),
        calibration=dataclasses.replace(config.calibration, columns=columns),
    )
