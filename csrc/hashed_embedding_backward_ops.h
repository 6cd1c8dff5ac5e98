// The front of the gradients of hashed tables: schemas, checks and registration, one text for CPU
// and CUDA. A backend B does the work in B::dense(on, call) and B::sparse(on, call). It tells
// positions of ids apart up to 2^B::kBitsOfPosition.
#pragma once
#include "hashed_embedding_checks.h"

namespace lirank {

// A checked call.
struct HashedGradientCall {
  Tensor grad;  // of each bag
  BagTensors bags;
  murmur::IdRule rule;
  int64_t heights[4];
  bool include_last_offset;
};

template <typename B>
HashedGradientCall read_gradient_call(const typename B::Device& on, const Tensor& grad,
                                      int64_t num_buckets, int64_t num_remainders, int64_t seed,
                                      bool prehashed, const BagArguments& a) {
  check_rule(on.op, num_buckets, seed);
  check_remainders(on.op, "num_remainders", num_remainders);
  check_floating(on.op, "grad", grad);
  check_dim(on.op, "grad", grad, 2);
  const ScalarType type = compute_type(grad.scalar_type());
  HashedGradientCall call{grad,
                          read_hashed_bags<B>(on.op, a, type, grad, prehashed),
                          id_rule(num_buckets, num_remainders, seed, prehashed),
                          {},
                          a.include_last_offset};
  const Bags& bags = call.bags.view;
  LIRANK_CHECK(grad.size(0) == bags.bag_count, on.op, "grad", "wanted ", bags.bag_count,
               " rows, got ", shape(grad));
  const int64_t limit = int64_t(1) << B::kBitsOfPosition;
  LIRANK_CHECK(bags.id_count < limit && bags.bag_count < limit, on.op, "ids",
               "wanted fewer than 2^", B::kBitsOfPosition, " ids and bags in one backward, got ",
               bags.id_count);
  const int64_t quotients = quotient_rows(num_buckets, num_remainders);
  for (int t = 0; t < 4; ++t) call.heights[t] = t % 2 ? num_remainders : quotients;
  return call;
}

template <typename B>
struct HashedGradientsOps {
  using Device = typename B::Device;
  using Dense = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  using Sparse = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Dense dense(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                     const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders,
                     int64_t seed, std::string mode, bool include_last_offset, bool prehashed) {
    const Device on("hashed_embedding_bag_backward", "grad", grad);
    return B::dense(
        on, read_gradient_call<B>(on, grad, num_buckets, num_remainders, seed, prehashed,
                                  {"ids", ids, offsets, mode, weights, include_last_offset}));
  }

  // Rows and values of both quotient tables, and the remainder tables' dense gradients.
  static Sparse sparse(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                       const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders,
                       int64_t seed, std::string mode, bool include_last_offset, bool prehashed) {
    const Device on("hashed_embedding_bag_backward_sparse", "grad", grad);
    return B::sparse(
        on, read_gradient_call<B>(on, grad, num_buckets, num_remainders, seed, prehashed,
                                  {"ids", ids, offsets, mode, weights, include_last_offset}));
  }
};

template <typename Library>
void define_hashed_gradients(Library& m) {
  m.def(
      "hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hashed_embedding_bag_backward_sparse(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

template <typename B, typename Library>
void register_hashed_gradients(Library& m) {
  using Ops = HashedGradientsOps<B>;
  m.impl("hashed_embedding_bag_backward", TORCH_BOX(&Ops::dense));
  m.impl("hashed_embedding_bag_backward_sparse", TORCH_BOX(&Ops::sparse));
}

}  // namespace lirank
