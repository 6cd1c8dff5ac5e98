"""What ``import lirank_ext`` offers; importing it registers every op with PyTorch."""

from . import nn, ops
from ._version import __version__
from .conversion.quantize import quantize
from .conversion.swap import swap
from .library.build_info import build_info
from .library.device_errors import check_errors
from .library.huge_pages import use_huge_pages
from .library.op import implementations
from .ops.cross import low_rank_cross
from .ops.cross_attention import attention_cross, outer_attention
from .ops.hashed_embedding import hashed_embedding_bag, quantized_hashed_embedding_bag
from .ops.hashing import hash_strings, murmur_hash
from .ops.isotonic import isotonic_calibration
from .ops.quantized_embedding import (
    concatenate_tables,
    dequantize_rows,
    pack_rows,
    quantize_rows,
    quantized_embedding_bag,
    quantized_embedding_bags,
    unpack_rows,
)
from .ops.static_vocabulary import vocabulary_lookup

__all__ = [
    "unpack_rows",
    "quantized_embedding_bags",
    "quantized_hashed_embedding_bag",
    "quantized_embedding_bag",
    "quantize",
    "quantize_rows",
    "pack_rows",
    "dequantize_rows",
    "concatenate_tables",
    "__version__",
    "attention_cross",
    "build_info",
    "check_errors",
    "hash_strings",
    "hashed_embedding_bag",
    "murmur_hash",
    "implementations",
    "isotonic_calibration",
    "low_rank_cross",
    "nn",
    "ops",
    "outer_attention",
    "swap",
    "use_huge_pages",
    "vocabulary_lookup",
]
