// hashed_embedding_bag: schemas.
// Source: LiRank (arXiv 2402.06859), vocabulary compression.
#include "checks.h"

namespace lirank {

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor remainder_b, "
      "Tensor quotient_c, Tensor remainder_c, int num_buckets, int seed=0, str mode=\"sum\", "
      "Tensor? per_sample_weights=None, bool include_last_offset=False, bool prehashed=False, bool "
      "sparse=False) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor "
      "remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int dim, int bits=8, "
      "int seed=0, str mode=\"sum\", Tensor? per_sample_weights=None, bool "
      "include_last_offset=False, bool prehashed=False, ScalarType output_dtype=float) -> Tensor");
  m.def(
      "hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hashed_embedding_bag_backward_sparse(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hashed_embedding_bag_backward_weights(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "seed, bool include_last_offset, bool prehashed) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "dim, int bits, int seed, bool include_last_offset, bool prehashed) -> Tensor");
}

}  // namespace lirank
