// The front of hashed_embedding_bag, of its packed twin and of the gradients of their weights:
// schemas, checks and registration, one text for CPU and CUDA. A backend B does the work:
// - B::pool(on, call, output_dtype) returns the pooled rows;
// - B::weight_gradient(on, call, grad, type) returns the gradient of the weights in `type`.
// Source: LiRank (arXiv 2402.06859), vocabulary compression.
#pragma once
#include "hashed_embedding_checks.h"

namespace lirank {

// A checked call. bits: 8 or 4 if the tables are packed, else 0.
struct HashedCall {
  const FourTables& tables;
  int64_t dim;
  int bits;
  murmur::IdRule rule;
  BagTensors bags;
};

template <typename B>
struct HashedBagsOps {
  using Device = typename B::Device;

  // Only autograd reads `sparse`.
  static Tensor bag(const Tensor& ids, const OptionalTensor& offsets, const Tensor& quotient_b,
                    const Tensor& remainder_b, const Tensor& quotient_c, const Tensor& remainder_c,
                    int64_t num_buckets, int64_t seed, std::string mode,
                    const OptionalTensor& weights, bool include_last_offset, bool prehashed,
                    bool /*sparse*/) {
    const Device on("hashed_embedding_bag", "quotient_b", quotient_b);
    const FourTables tables = {quotient_b, remainder_b, quotient_c, remainder_c};
    return B::pool(on,
                   float_call(on, tables, num_buckets, seed, prehashed,
                              {"ids", ids, offsets, mode, weights, include_last_offset}),
                   quotient_b.scalar_type());
  }

  static Tensor packed_bag(const Tensor& ids, const OptionalTensor& offsets,
                           const Tensor& quotient_b, const Tensor& remainder_b,
                           const Tensor& quotient_c, const Tensor& remainder_c, int64_t num_buckets,
                           int64_t dim, int64_t bits, int64_t seed, std::string mode,
                           const OptionalTensor& weights, bool include_last_offset, bool prehashed,
                           OptionalType output_dtype) {
    const Device on("quantized_hashed_embedding_bag", "quotient_b", quotient_b);
    const FourTables tables = {quotient_b, remainder_b, quotient_c, remainder_c};
    const ScalarType type = checked_output_dtype(on.op, output_dtype);
    return B::pool(on,
                   packed_call(on, tables, num_buckets, dim, bits, seed, prehashed,
                               {"ids", ids, offsets, mode, weights, include_last_offset}),
                   type);
  }

  static Tensor bag_backward_weights(const Tensor& grad, const Tensor& ids,
                                     const OptionalTensor& offsets, const Tensor& quotient_b,
                                     const Tensor& remainder_b, const Tensor& quotient_c,
                                     const Tensor& remainder_c, int64_t num_buckets, int64_t seed,
                                     bool include_last_offset, bool prehashed) {
    const Device on("hashed_embedding_bag_backward_weights", "quotient_b", quotient_b);
    const FourTables tables = {quotient_b, remainder_b, quotient_c, remainder_c};
    return weight_gradient(on,
                           float_call(on, tables, num_buckets, seed, prehashed,
                                      {"ids", ids, offsets, kSum, kNone, include_last_offset}),
                           grad);
  }

  static Tensor packed_bag_backward_weights(const Tensor& grad, const Tensor& ids,
                                            const OptionalTensor& offsets, const Tensor& quotient_b,
                                            const Tensor& remainder_b, const Tensor& quotient_c,
                                            const Tensor& remainder_c, int64_t num_buckets,
                                            int64_t dim, int64_t bits, int64_t seed,
                                            bool include_last_offset, bool prehashed) {
    const Device on("quantized_hashed_embedding_bag_backward", "quotient_b", quotient_b);
    const FourTables tables = {quotient_b, remainder_b, quotient_c, remainder_c};
    return weight_gradient(on,
                           packed_call(on, tables, num_buckets, dim, bits, seed, prehashed,
                                       {"ids", ids, offsets, kSum, kNone, include_last_offset}),
                           grad);
  }

 private:
  static HashedCall float_call(const Device& on, const FourTables& tables, int64_t num_buckets,
                               int64_t seed, bool prehashed, const BagArguments& a) {
    check_rule(on.op, num_buckets, seed);
    check_float_tables(on.op, tables, num_buckets);
    return {
        tables, tables[0].size(1), 0, id_rule(num_buckets, tables[1].size(0), seed, prehashed),
        read_hashed_bags<B>(on.op, a, compute_type(tables[0].scalar_type()), tables[0], prehashed)};
  }

  static HashedCall packed_call(const Device& on, const FourTables& tables, int64_t num_buckets,
                                int64_t dim, int64_t bits, int64_t seed, bool prehashed,
                                const BagArguments& a) {
    check_rule(on.op, num_buckets, seed);
    check_packed_tables(on.op, tables, num_buckets, dim, bits, B::kWidest);
    return {tables, dim, (int)bits, id_rule(num_buckets, tables[1].size(0), seed, prehashed),
            read_hashed_bags<B>(on.op, a, ScalarType::Float, tables[0], prehashed)};
  }

  static Tensor weight_gradient(const Device& on, const HashedCall& call, const Tensor& grad) {
    const int64_t bags = call.bags.view.bag_count;
    check_floating(on.op, "grad", grad);
    check_together(on.op, "grad", grad, call.tables[0]);
    LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == bags && grad.size(1) == call.dim, on.op, "grad",
                 "wanted shape (", bags, ", ", call.dim, "), got ", shape(grad));
    const ScalarType type =
        call.bits ? ScalarType::Float : compute_type(call.tables[0].scalar_type());
    return B::weight_gradient(on, call, B::as_type(grad, type), type);
  }
};

template <typename Library>
void define_hashed_bags(Library& m) {
  m.def(
      "hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor remainder_b, "
      "Tensor quotient_c, Tensor remainder_c, int num_buckets, int seed=0, str mode=\"sum\", "
      "Tensor? per_sample_weights=None, bool include_last_offset=False, bool prehashed=False, bool "
      "sparse=False) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor "
      "remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int dim, int bits=8, "
      "int seed=0, str mode=\"sum\", Tensor? per_sample_weights=None, bool "
      "include_last_offset=False, bool prehashed=False, ScalarType? output_dtype=None) -> Tensor");
  m.def(
      "hashed_embedding_bag_backward_weights(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "seed, bool include_last_offset, bool prehashed) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "dim, int bits, int seed, bool include_last_offset, bool prehashed) -> Tensor");
}

template <typename B, typename Library>
void register_hashed_bags(Library& m) {
  using Ops = HashedBagsOps<B>;
  m.impl("hashed_embedding_bag", TORCH_BOX(&Ops::bag));
  m.impl("quantized_hashed_embedding_bag", TORCH_BOX(&Ops::packed_bag));
  m.impl("hashed_embedding_bag_backward_weights", TORCH_BOX(&Ops::bag_backward_weights));
  m.impl("quantized_hashed_embedding_bag_backward", TORCH_BOX(&Ops::packed_bag_backward_weights));
}

}  // namespace lirank
