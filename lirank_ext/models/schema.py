"""The columns that a LiRank model reads, and the labels that it predicts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from ._parse import ConfigError, check_at_least, refuse_twice, refuse_unknown

# How values become ids. It changes with the rule, so that a model of an older one is refused.
VERSION = 2
# Text that stands for a missing value in CSV, which has no other way to say it.
MISSING = ("?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")
Form = Literal["y-m-d", "d.m.y", "d/m/y", "m/d/y", "yyyymmdd", "s", "ms", "us", "ns"]
Kind = Literal["text", "number", "boolean", Form]


@dataclass
class Categorical:
    """A column of ids. Every value is hashed together with its prefix.

    Attributes:
        name: name of the column.
        table: name of its embedding table. Columns may share a table.
        prefix: columns of one table that have the same prefix use the same rows for equal values,
            as a member's title and a job's title do. None takes the column's name.
        separator: splits a cell into several ids, which are pooled. None takes the cell as one id.
        edges: bounds of bins. The column then holds numbers, and the id is the number of the bin.
        kind: what the values are, so that each value has one id however a file spells it. "text"
            takes text as it is. With "number", 7, 7.0 and "7" are one id; with "boolean", True,
            true and 1 are. A form of dates and times (see :class:`TimePart`) gives all spellings
            of one moment the same id.
    """

    name: str
    table: str = "ids"
    prefix: str | None = None
    separator: str | None = None
    edges: list[float] = field(default_factory=list)
    kind: Kind = "text"

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ConfigError(f"column '{self.name}': separator: wanted text, got ''")
        if self.edges != sorted(self.edges):
            raise ConfigError(f"column '{self.name}': edges: wanted rising numbers")

    @property
    def key(self) -> str:
        """The prefix, or the column's name if there is none."""
        return self.name if self.prefix is None else self.prefix


@dataclass
class History:
    """A column of past items. Each item is hashed as a value of the candidate's column.

    Attributes:
        name: name of the column. Its cells are lists, or texts with several items.
        candidate: the categorical column that the items belong to.
        actions: a column with one action (click, like...) per item, or None.
        separator: separates the items of a text cell.
        newest_first: whether the items are ordered from newest to oldest.
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

    The thresholds are measured on the training rows and stored with the model. Each training,
    including every increment, is one update of :class:`lirank_ext.nn.LongDwellLabels`. The paper
    measures daily, clusters by ranking position, content type and platform, and gives the 90th
    percentile as an example.

    Attributes:
        clusters: columns whose values define the clusters. Without any, all rows are one cluster.
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


# A comparison with a number, as in the label "rating>=4".
THRESHOLD = re.compile(r"(?P<sign>>=|<=|>|<)\s*(?P<bound>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)$")


@dataclass
class Task:
    """A label to predict.

    Attributes:
        name: name of the task.
        column: column of the labels. None takes the task's name.
        positive: the value that counts as 1. All others count as 0. None expects labels 0 and 1.
        weight: weight of the task's loss. The paper does not give its weights, so 1 is a free
            choice.
        dwell: if set, the column holds times, and the label is "stayed long".
        threshold: a comparison such as ">=4". A number that satisfies it counts as 1.
    """

    name: str
    column: str | None = None
    positive: str | None = None
    weight: float = 1.0
    dwell: Dwell | None = None
    threshold: str | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError(f"task '{self.name}': weight: wanted 0 or more, got {self.weight}")
        if self.dwell is not None and self.positive is not None:
            raise ConfigError(f"task '{self.name}': wanted either positive or dwell, got both")
        if self.threshold is None:
            return
        if not THRESHOLD.fullmatch(self.threshold):
            raise ConfigError(
                f"task '{self.name}': threshold: wanted a comparison such as '>=4', got "
                f"'{self.threshold}'"
            )
        if self.dwell is not None or self.positive is not None:
            raise ConfigError(
                f"task '{self.name}': wanted one of threshold, positive and dwell, got several"
            )

    @property
    def source(self) -> str:
        """The column of the labels."""
        return self.name if self.column is None else self.column


@dataclass
class TimePart:
    """A feature made of a column of dates or times.

    Attributes:
        name: of the feature, which ``Schema.numeric`` or ``Schema.categorical`` lists.
        column: of the times.
        part: "hour" of the day, "weekday" from Monday as 0, or "age" in days.
        form: how the column writes them, unless its type says so: the order of day, month and
            year, or the unit of a number since 1970. Times without a zone are UTC.
        origin: the moment of age 0, in seconds since 1970.
    """

    name: str
    column: str
    part: Literal["hour", "weekday", "age"]
    form: Form = "y-m-d"
    origin: float = 0.0


@dataclass
class Scaling:
    """What is done to numbers before they become float32: ``(x - center) / scale``.

    Columns far from 0 for their spread, or of a scale that float32 and the batch norm's epsilon
    do not suit, need it.
    """

    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.scale < float("inf")) or self.center != self.center:
            raise ConfigError(f"scale: wanted a positive number, got {self.scale}")


@dataclass
class Schema:
    """The columns of a row, and how files write them.

    Attributes:
        numeric: columns of numbers.
        log: the numeric columns to map by ``sign(x) log(1 + |x|)`` first, such as counts and
            amounts.
        categorical, history, tasks: see :class:`Categorical`, :class:`History` and :class:`Task`.
        request: the numeric, categorical and history columns that belong to the request and are
            the same for all of its candidates; see :meth:`lirank_ext.models.LiRank.score`.
        popularity: column whose values each get a random effect; see
            :class:`lirank_ext.models.Popularity`.
        times: features that are made of dates and times.
        indicators: categorical features that only say whether another column has a value; maps
            the feature to the column. Without one, a missing number is read as the mean.
        scaling: how to scale the numeric columns that need it.
        decimal_comma: columns that write 1.234,5 where others write 1234.5.
        missing: texts that stand for a missing value in CSV columns, and in numeric columns of
            any file. An empty cell is always missing. Text columns of Parquet files have nulls
            instead, and all of their texts are values.
        names: names of the columns, for CSV files without a header line.
        weight: column of numbers of 0 or more by which rows count in the loss and in the metrics.
        group: column of ids, such as the user, within which GAUC and NDCG compare rows.
        version: version of the rule that turns values into ids.
    """

    numeric: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    categorical: list[Categorical] = field(default_factory=list)
    history: list[History] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    popularity: str | None = None
    times: list[TimePart] = field(default_factory=list)
    indicators: dict[str, str] = field(default_factory=dict)
    scaling: dict[str, Scaling] = field(default_factory=dict)
    decimal_comma: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=lambda: list(MISSING))
    names: list[str] = field(default_factory=list)
    weight: str | None = None
    group: str | None = None
    version: int = VERSION
    request: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ConfigError(
                f"version: wanted {VERSION}, got {self.version}: values became ids by another "
                "rule, so the model must be trained again"
            )
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
        refuse_twice("request", self.request)
        known = [*self.numeric, *names, *(h.name for h in self.history)]
        for name in self.request:
            refuse_unknown("request", "numeric, categorical or history column", name, known)

    @property
    def made(self) -> dict[str, str]:
        """The columns of the features that are made of another column."""
        return {**{part.name: part.column for part in self.times}, **self.indicators}

    @property
    def sources(self) -> dict[str, str]:
        """The column of every numeric, categorical and history feature."""
        names = [*self.numeric, *(c.name for c in self.categorical)]
        names += [h.name for h in self.history]
        made = self.made
        return {name: made.get(name, name) for name in names}

    @property
    def columns(self) -> list[str]:
        """All columns of a file that are read as features."""
        names = [h.actions for h in self.history if h.actions]
        names += [self.popularity] if self.popularity else []
        made = self.made
        more = (made.get(name, name) for name in names)
        return list(dict.fromkeys([*self.sources.values(), *more]))

    def kind(self, column: str) -> str:
        """What the values of a column are, as its categorical feature says."""
        return next((c.kind for c in self.categorical if c.name == column and not c.edges), "text")

    def tables(self) -> dict[str, list[Categorical]]:
        """The columns of every table, in order."""
        tables: dict[str, list[Categorical]] = {}
        for column in self.categorical:
            tables.setdefault(column.table, []).append(column)
        return tables
