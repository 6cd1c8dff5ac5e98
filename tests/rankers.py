"""Small LiRank models of the presets, and features for them."""

from __future__ import annotations

import dataclasses

import torch

from lirank_ext.models import LiRankConfig

PRESETS = ("feed", "jobs", "ads")


def make_features(config: LiRankConfig, rows: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def hashes(*shape):
        return torch.randint(-(2**63), 2**63 - 1, shape, generator=g)

    schema = config.schema
    features = {"numeric": torch.randn(rows, len(schema.numeric), generator=g)}
    for table, columns in schema.tables().items():
        lengths = torch.randint(0, 4, (rows * len(columns),), generator=g)
        features[f"ids/{table}"] = hashes(int(lengths.sum()))
        features[f"offsets/{table}"] = lengths.cumsum(0) - lengths
    for history in schema.history:
        key = f"history/{history.name}"
        features[f"{key}/items"] = hashes(rows, 7)
        features[f"{key}/actions"] = hashes(rows, 7)
        features[f"{key}/lengths"] = torch.arange(rows) % 8
    features["popularity"] = hashes(rows)
    return features


def small(name: str) -> LiRankConfig:
    config = LiRankConfig.preset(name)
    embedding = dataclasses.replace(
        config.embedding, dim=6, num_buckets=1000, num_remainders=10, tables={}
    )
    return dataclasses.replace(config, embedding=embedding)
