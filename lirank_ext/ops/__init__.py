"""One module per op family; each holds definition, fake kernel, backward and registration."""

from . import cross, hashing, isotonic, quantized_embedding

__all__ = ["cross", "hashing", "isotonic", "quantized_embedding"]
