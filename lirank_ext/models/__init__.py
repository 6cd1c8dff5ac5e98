"""The ranking models of LiRank, assembled from this package's modules by a configuration."""

from ._parse import ConfigError
from .config import (
    MLP,
    Calibration,
    Categorical,
    Cross,
    Dwell,
    Embedding,
    Explore,
    Head,
    History,
    HistoryBlock,
    LiRankConfig,
    Numeric,
    Popularity,
    Schema,
    Table,
    Task,
    with_schema,
)
from .lirank import LiRank

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
    "Schema",
    "Table",
    "Task",
    "with_schema",
]
