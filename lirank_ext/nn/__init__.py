"""Modules and layers built on the ops."""

from .cross import AttentionCross, LowRankCross, ResidualCrossNet

__all__ = ["AttentionCross", "LowRankCross", "ResidualCrossNet"]
