"""The paper's three models. Column names are placeholders for the columns that the paper lists."""

from __future__ import annotations

import dataclasses

from ..nn._common import did_you_mean
from ._parse import ConfigError
from .config import MLP, Calibration, Cross, Embedding, Head, LiRankConfig, Table
from .schema import Categorical, History, Schema, Task

JOBS_MATRICES = ("title", "skill", "company", "industry", "seniority")


def feed() -> LiRankConfig:
    """Feed: a click tower (click, long dwell) and a contribution tower on the same input.

    From the paper: six sparse columns over an actor and a hashtag table, width 30, the base MLP of
    four gated layers of 100, and two cross layers. Free choices: the ten dense columns, the widths
    of the towers, and that both towers share the cross nets and the MLP.
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
    """Jobs: P(apply) and P(click), with 40 columns in five shared tables and a DCN per task.

    From the paper: the five tables with quotient-remainder compression, a cross net of two layers
    for each task, and no gate, because it did not help this model. Free choice: each table serves
    eight columns, four of the member and four of the job.
    """
    categorical = [
        Categorical(f"{side}_{name}_{i}", name, name)
        for name in JOBS_MATRICES
        for side in ("member", "job")
        for i in range(4)
    ]
    schema = Schema(categorical=categorical, tasks=[Task("apply"), Task("click")])
    # A fifth as many rows as buckets, which are 100,000 per table, as in the paper.
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
    """Ads: three heads for similar chargeable clicks, each with its own MLP and cross net.

    From the paper: advertiser, campaign and ad ids, the heads, and isotonic calibration. Free
    choices: the twenty dense columns, equal weights of the heads' losses, and calibration by
    device.
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
        name: name of the preset.
        schema: columns to use instead of the preset's columns, which are the paper's.

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

    Table sizes and calibration columns that ``schema`` does not have are dropped. The groups are
    dropped unless they name exactly the tasks of ``schema``.
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
