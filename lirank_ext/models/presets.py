"""The paper's three models. Column names are placeholders for what the paper lists."""

from __future__ import annotations

from .config import (
    MLP,
    Calibration,
    Categorical,
    Cross,
    Embedding,
    Head,
    History,
    LiRankConfig,
    Schema,
    Table,
    Task,
)

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
