"""Modules and layers built on the ops."""

from .cross import AttentionCross, LowRankCross, ResidualCrossNet
from .gated_mlp import GatedMLP
from .history import HistoryEncoder

__all__ = [
    "AttentionCross",
    "GatedMLP",
    "HistoryEncoder",
    "LowRankCross",
    "ResidualCrossNet",
]
