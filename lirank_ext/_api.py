"""What ``import lirank_ext`` offers; importing it registers every op with PyTorch."""

from . import nn, ops
from ._version import __version__
from .conversion.capture import capture
from .conversion.quantize import quantize
from .conversion.swap import swap
from .library.build_info import build_info, library_path
from .library.device_errors import check_errors
from .library.huge_pages import use_huge_pages
from .library.op import implementations
from .ops.cross import low_rank_cross
from .ops.cross_attention import attention_cross, outer_attention
from .ops.decompositions import decompositions
from .ops.hashed_embedding import hashed_embedding_bag
from .ops.hashed_embedding_packed import quantized_hashed_embedding_bag
from .ops.hashed_embedding_rule import hashed_rows
from .ops.hashing import hash_strings, murmur_hash
from .ops.isotonic import isotonic_calibration
from .ops.quantized_embedding import (
    concatenate_tables,
    quantized_embedding_bag,
    quantized_embedding_bags,
)
from .ops.quantized_embedding_rows import (
    concatenate_rows,
    dequantize_rows,
    pack_rows,
    quantize_rows,
    slice_rows,
    unpack_rows,
)
from .ops.static_vocabulary import vocabulary_lookup

__all__ = [
    "__version__",
    "attention_cross",
    "build_info",
    "capture",
    "check_errors",
    "concatenate_rows",
    "concatenate_tables",
    "decompositions",
    "dequantize_rows",
    "hash_strings",
    "hashed_embedding_bag",
    "hashed_rows",
    "implementations",
    "isotonic_calibration",
    "library_path",
    "low_rank_cross",
    "murmur_hash",
    "nn",
    "ops",
    "outer_attention",
    "pack_rows",
    "quantize",
    "quantize_rows",
    "quantized_embedding_bag",
    "quantized_embedding_bags",
    "quantized_hashed_embedding_bag",
    "slice_rows",
    "swap",
    "unpack_rows",
    "use_huge_pages",
    "vocabulary_lookup",
]
