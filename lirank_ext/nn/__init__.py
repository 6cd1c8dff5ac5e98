"""Modules and layers built on the ops."""

from .cross import AttentionCross, LowRankCross, ResidualCrossNet
from .dwell import LongDwellLabels
from .explore import NeuralLinear
from .gated_mlp import GatedMLP
from .history import HistoryEncoder
from .incremental import IncrementalPenalty
from .inputs import NumericBatchNorm
from .multi_task import GroupedTowers, HardShared
from .multi_task_experts import PLE, MMoE
from .random_effect import RandomEffect

__all__ = [
    "AttentionCross",
    "GatedMLP",
    "GroupedTowers",
    "HardShared",
    "HistoryEncoder",
    "IncrementalPenalty",
    "LongDwellLabels",
    "LowRankCross",
    "MMoE",
    "NeuralLinear",
    "NumericBatchNorm",
    "PLE",
    "RandomEffect",
    "ResidualCrossNet",
]
