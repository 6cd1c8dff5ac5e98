"""Modules and layers built on the ops."""

from .clip import clip_grad_norm_
from .cross import AttentionCross, LowRankCross, ResidualCrossNet
from .cross_net import FullRankCrossNet, LowRankCrossNet, MixtureCrossNet
from .dwell import LongDwellLabels
from .explore import NeuralLinear
from .gated_mlp import GatedMLP
from .hashed_embedding import HashedEmbeddingBag, QuantizedHashedEmbeddingBag
from .hashed_embedding_sharded import shard_rows
from .history import HistoryEncoder
from .incremental import IncrementalPenalty
from .inputs import NumericBatchNorm
from .isotonic import IsotonicCalibration
from .multi_task import GroupedTowers, HardShared
from .multi_task_experts import PLE, MMoE
from .quantized_embedding import QuantizedEmbedding, QuantizedEmbeddingBag
from .quantized_embedding_collection import QuantizedEmbeddingBagCollection
from .random_effect import RandomEffect
from .static_vocabulary import StaticVocabulary

__all__ = [
    "AttentionCross",
    "FullRankCrossNet",
    "GatedMLP",
    "GroupedTowers",
    "HardShared",
    "HashedEmbeddingBag",
    "HistoryEncoder",
    "IncrementalPenalty",
    "IsotonicCalibration",
    "LongDwellLabels",
    "LowRankCross",
    "LowRankCrossNet",
    "MMoE",
    "MixtureCrossNet",
    "NeuralLinear",
    "NumericBatchNorm",
    "PLE",
    "QuantizedEmbedding",
    "QuantizedEmbeddingBag",
    "QuantizedEmbeddingBagCollection",
    "QuantizedHashedEmbeddingBag",
    "RandomEffect",
    "ResidualCrossNet",
    "StaticVocabulary",
    "clip_grad_norm_",
    "shard_rows",
]
