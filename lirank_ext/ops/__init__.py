"""One module per op, or per few that belong together: definition, fake kernel and backward."""

from . import (
    cross,
    cross_attention,
    cross_net,
    hashed_embedding,
    hashing,
    isotonic,
    quantized_embedding,
    static_vocabulary,
)

__all__ = [
    "cross",
    "cross_attention",
    "cross_net",
    "hashed_embedding",
    "hashing",
    "isotonic",
    "quantized_embedding",
    "static_vocabulary",
]
