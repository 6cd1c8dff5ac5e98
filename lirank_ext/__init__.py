"""Fast PyTorch ops, modules and models for LiRank (arXiv 2402.06859)."""

from . import nn, ops
from ._build import build_info
from ._library import implementations
from ._version import __version__
from .ops.cross import attention_cross, low_rank_cross, outer_attention
from .ops.isotonic import isotonic_calibration

__all__ = [
    "__version__",
    "attention_cross",
    "build_info",
    "implementations",
    "isotonic_calibration",
    "low_rank_cross",
    "nn",
    "ops",
    "outer_attention",
]
