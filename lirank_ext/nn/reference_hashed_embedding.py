"""The hashed embedding in eager PyTorch, for reading. ``swap`` replaces it by the fast module.

It has the parameters and the state dict of the fast module in ``nn/hashed_embedding.py``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding_bag

from ..ops.hashing import murmur
from .hashed_embedding import HashedParameters


class ReferenceHashedEmbeddingBag(HashedParameters):
    """:class:`HashedEmbeddingBag` in eager PyTorch: four ``embedding_bag`` calls and their sum."""

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        if offsets is None and ids.dim() == 1:  # a plain look-up: each id is a bag of its own
            ids = ids.unsqueeze(1)
            per_sample_weights = None if per_sample_weights is None else per_sample_weights[:, None]
        hashes = ids if self.prehashed else murmur(ids, self.seed)
        offsets = None if offsets is None else offsets.to(ids.dtype)

        def pool(table: Tensor, rows: Tensor, sparse: bool) -> Tensor:
            last = self.include_last_offset and offsets is not None
            weights = per_sample_weights
            options = {"per_sample_weights": weights, "include_last_offset": last}
            return embedding_bag(rows, table, offsets, mode=self.mode, sparse=sparse, **options)

        b = (hashes & 0xFFFFFFFF) % self.num_buckets
        c = ((hashes >> 32) & 0xFFFFFFFF) % self.num_buckets
        m, sparse = self.num_remainders, self.gives_sparse()
        return (
            pool(self.quotient_b, b // m, sparse)
            + pool(self.remainder_b, b % m, False)
            + pool(self.quotient_c, c // m, sparse)
            + pool(self.remainder_c, c % m, False)
        )
