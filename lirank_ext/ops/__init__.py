"""One module per op family; each holds definition, fake kernel, backward and registration."""

from . import cross, hashed_embedding, hashing, isotonic, quantized_embedding, static_vocabulary

__all__ = [
    "cross",
    "hashed_embedding",
    "hashing",
    "isotonic",
    "quantized_embedding",
    "static_vocabulary",
]
