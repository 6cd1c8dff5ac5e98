"""One module per op family; each holds definition, fake kernel, backward and registration."""

from . import cross, hashed_embedding, hashing, isotonic, quantized_embedding

__all__ = ["cross", "hashed_embedding", "hashing", "isotonic", "quantized_embedding"]
