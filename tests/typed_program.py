"""A program as users write it: mypy --strict must find the types of all that it calls.

It is checked and not run. A call of a type checker's ``Any`` would pass ``assert_type`` only if it
said so here, so every name of the public interface that loses its type is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import lirank_ext
from lirank_ext import models
from lirank_ext.conversion.capture import Captured
from lirank_ext.conversion.quantize import QuantizeReport
from lirank_ext.conversion.swap_report import SwapReport
from lirank_ext.nn import (
    AttentionCross,
    GatedMLP,
    HashedEmbeddingBag,
    IsotonicCalibration,
    LowRankCross,
    QuantizedEmbeddingBag,
    QuantizedHashedEmbeddingBag,
    ResidualCrossNet,
    StaticVocabulary,
)


class OwnCross(nn.Module):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.dim, self.rank = dim, rank
        self.down = nn.Parameter(torch.randn(rank, dim))
        self.up = nn.Parameter(torch.randn(dim, rank))
        self.bias = nn.Parameter(torch.zeros(dim))


@lirank_ext.swap.register(OwnCross)
def convert(module: OwnCross) -> LowRankCross:
    made = LowRankCross(module.dim, module.rank)
    made.v, made.u, made.bias = module.down, module.up, module.bias
    return made


def refuse(module: OwnCross) -> nn.Module:
    raise lirank_ext.swap.Leave("it is too small")


lirank_ext.swap.register(OwnCross, refuse)


def ops(x: Tensor, ids: Tensor, offsets: Tensor, weight: Tensor) -> None:
    assert_type(lirank_ext.low_rank_cross(x, x, x, x, None), Tensor)
    assert_type(lirank_ext.outer_attention(x, x, x, temperature=0.5), Tensor)
    assert_type(lirank_ext.attention_cross(x, x, x, x, x, x, None), Tensor)
    codes, scale, mid = lirank_ext.quantize_rows(weight, bits=8)
    assert_type(codes, Tensor)
    packed = lirank_ext.pack_rows(codes, scale, mid)
    assert_type(lirank_ext.unpack_rows(packed, 64), tuple[Tensor, Tensor, Tensor])
    assert_type(lirank_ext.dequantize_rows(codes, scale, mid), Tensor)
    assert_type(lirank_ext.quantized_embedding_bag(packed, ids, offsets, 64), Tensor)
    assert_type(lirank_ext.murmur_hash(ids, seed=1), Tensor)
    assert_type(lirank_ext.hash_strings(["a", "b"]), Tensor)
    assert_type(lirank_ext.hash_strings(np.array(["a", "b"])), Tensor)
    assert_type(lirank_ext.hashed_embedding_bag(ids, offsets, x, x, x, x, 1000), Tensor)
    assert_type(lirank_ext.isotonic_calibration(x[0], x[0], x[0], -8.0, 0.1), Tensor)
    lirank_ext.check_errors()


def modules(x: Tensor, ids: Tensor, offsets: Tensor) -> None:
    assert_type(LowRankCross(64, 16).forward(x, x), Tensor)
    assert_type(AttentionCross(64, 16).forward(x, x), Tensor)
    assert_type(AttentionCross(64, 16).temperature, float | Tensor)
    net = ResidualCrossNet(64, 16)
    assert_type(net.forward(x), Tensor)
    assert_type(net.score(x, x, offsets), Tensor)
    assert_type(GatedMLP([64, 32, 1]).forward(x), Tensor)
    bags = HashedEmbeddingBag(64)
    assert_type(bags.forward(ids, offsets), Tensor)
    assert_type(bags.quantize(bits=4), QuantizedHashedEmbeddingBag)
    table = QuantizedEmbeddingBag.from_float(nn.EmbeddingBag(10, 64))
    assert_type(table, QuantizedEmbeddingBag)
    assert_type(table.to_fbgemm(), Tensor)
    assert_type(StaticVocabulary.build(["a", "b"]), StaticVocabulary)
    assert_type(IsotonicCalibration(-8.0, 8.0, 0.1).forward(x[0]), Tensor)


def whole(model: nn.Module, batch: Tensor) -> None:
    report = lirank_ext.swap(model, dry_run=True)
    assert_type(report, SwapReport)
    assert_type([row.path for row in report.left], list[str])
    assert_type(lirank_ext.quantize(model, bits=8), QuantizeReport)
    assert_type(lirank_ext.capture(model, batch), Captured)
    assert_type(lirank_ext.build_info(), dict[str, str])
    assert_type(lirank_ext.implementations("murmur_hash"), dict[str, Callable[..., Any]])


def ranker(features: dict[str, Tensor], counts: Tensor) -> None:
    tasks = [models.Task("click")]
    model = models.LiRank(models.LiRankConfig(models.Schema(numeric=["price"], tasks=tasks)))
    assert_type(model.predict(features), Tensor)
    assert_type(model.score(features, features, counts), Tensor)
