"""The columns that a LiRank model reads, and the labels that it predicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._parse import ConfigError, check_at_least, refuse_twice, refuse_unknown


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
        refuse_twice("clusters", self.clusters)
        check_at_least(1, window=self.window, min_count=self.min_count)
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
        refuse_twice("numeric", self.numeric)
        refuse_twice("categorical", names)
        refuse_twice("history", [h.name for h in self.history])
        refuse_twice("tasks", [t.name for t in self.tasks])
        for name in self.log:
            refuse_unknown("log", "numeric column", name, self.numeric)
        for history in self.history:
            what = f"history '{history.name}': candidate"
            refuse_unknown(what, "categorical column", history.candidate, names)

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
