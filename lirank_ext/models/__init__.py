"""The ranking models of LiRank, assembled from this package's modules by a configuration."""

from ._parse import ConfigError
from .config import (
    MLP,
    Calibration,
    Cross,
    Embedding,
    Explore,
    Head,
    HistoryBlock,
    LiRankConfig,
    Numeric,
    Popularity,
    Table,
)
from .lirank import LiRank
from .presets import preset, with_schema
from .schema import Categorical, Dwell, History, Scaling, Schema, Task, TimePart

__all__ = [
    "MLP",
    "Calibration",
    "Categorical",
    "ConfigError",
    "Cross",
    "Dwell",
    "Embedding",
    "Explore",
    "Head",
    "History",
    "HistoryBlock",
    "LiRank",
    "LiRankConfig",
    "Numeric",
    "Popularity",
    "Scaling",
    "Schema",
    "Table",
    "Task",
    "TimePart",
    "preset",
    "with_schema",
]
