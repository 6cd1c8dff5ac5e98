"""The paper's three models. Column names are placeholders for what the paper lists."""

from __future__ import annotations

import dataclasses

from ..nn._common import did_you_mean
from ._parse import ConfigError
from .config import MLP, Calibration, Cross, Embedding, Head, LiRankConfig, Table
from .schema import Categorical, History, Schema, Task

JOBS_MATRICES = ("title", "skill", "company", "industry", "seniority")


def feed() -> LiRankConfig:
    """Feed: a click tower (click, long dwell) and a contribution tower, all on the same input.

    The paper's: the six sparse columns over an actor and a hashtag table, width 30, the base MLP
    of four layers of 100 with gates, two cross layers. Free: the ten dense columns, widths of
    the towers, that the cross nets and the MLP stand below both towers.
    """
    bags = ("viewer_historical_actors", "actor_historical_actors")
    hashtags = ("viewer_hashtags", "actor_hashtags", "post_hashtags")
    categorical = [Categorical("actor", "actor", "actor")]
    categorical += [Categorical(name, "actor", "actor", " ") for name in bags]
    categorical += [Categorical(name, "hashtag", "hashtag", " ") for name in hashtags]
    schema = Schema(
        numeric=[f"dense_{i}" for i in range(10)],
        categorical=categorical,
        history=[History("past_actors", "actor", actions="past_actions")],
        tasks=[Task("click"), Task("long_dwell"), Task("contribution")],
        popularity="post",
    )
    groups = [["click", "long_dwell"], ["contribution"]]
    return LiRankConfig(schema, head=Head("grouped", groups=groups))


def jobs() -> LiRankConfig:
    """Jobs: P(apply) and P(click), 40 columns through five shared matrices, a DCN per task.

    The paper's: the five matrices with quotient-remainder compression, a cross net of two layers
    for each task, no gate (it gave nothing here). Free: that each matrix serves eight columns,
    half the member's and half the job's.
    """
    categorical = [
        Categorical(f"{side}_{name}_{i}", name, name)
        for name in JOBS_MATRICES
        for side in ("member", "job")
        for i in range(4)
    ]
    schema = Schema(categorical=categorical, tasks=[Task("apply"), Task("click")])
    # Five times fewer rows than 100,000 buckets a matrix, as in the paper.
    tables = {name: Table(100_000, 5) for name in JOBS_MATRICES}
    return LiRankConfig(
        schema,
        embedding=Embedding(tables=tables),
        cross=Cross(attention=False),
        mlp=MLP(gate=None),
        head=Head("hard", "per_tower", tower_dims=[64]),
        calibration=Calibration(enabled=False),
    )


def ads() -> LiRankConfig:
    """Ads: three heads of similar chargeable clicks, each with an MLP and a cross net of its own.

    The paper's: advertiser, campaign and ad ids, the heads, isotonic calibration. Free: the
    twenty dense columns, equal weights of the heads' losses, the calibration by device.
    """
    ids = [Categorical(name, name) for name in ("advertiser", "campaign", "ad")]
    context = [Categorical(name, "context") for name in ("device", "channel")]
    schema = Schema(
        numeric=[f"dense_{i}" for i in range(20)],
        categorical=ids + context,
        tasks=[Task(f"chargeable_{i}") for i in range(3)],
    )
    return LiRankConfig(
        schema,
        cross=Cross(attention=False),
        head=Head("hard", "per_tower"),
        calibration=Calibration(columns=["device"]),
    )


PRESETS = {"feed": feed, "jobs": jobs, "ads": ads}


def preset(name: str, schema: Schema | None = None) -> LiRankConfig:
    """One of the paper's models: ``"feed"``, ``"jobs"`` or ``"ads"``.

    Args:
        name: of the preset.
        schema: columns to use in place of the preset's own, which are the paper's.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"preset: wanted one of {known}, got '{name}'{hint}")
    config = PRESETS[name]()
    return config if schema is None else with_schema(config, schema)


LiRankConfig.preset = staticmethod(preset)


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
