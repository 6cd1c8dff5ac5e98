// hashed_embedding_bag on CUDA tensors: checks, results, launches.
#include "hashed_embedding_cuda.h"

namespace lirank {
namespace {

using gpu::HashedParams;

// ---- arguments as the kernels take them ------------------------------------------------

// Holds the tensors that the pointers point into.
struct Call {
  Four tables;
  DeviceBags ids;
  HashedParams params;
};

Call read_call(const OnDevice& on, const Four& given, int64_t dim, int64_t bits, const Tensor& ids,
               const OptionalTensor& offsets, const std::string& mode,
               const OptionalTensor& weights, bool include_last) {
  check_same_dtype(on.op, "ids", ids, ScalarType::Long);
  const ScalarType type = bits ? ScalarType::Float : given[0].scalar_type();
  Call c{given,
         read_device_bags(on.op, "ids", ids, offsets, mode, weights, include_last,
                          compute_type(type), given[0]),
         {}};
  HashedParams& p = c.params;
  for (int t = 0; t < 4; ++t) {
    if (bits) check_in_place(on.op, kNames[t], given[t]);
    p.tables.base[t] = given[t].const_data_ptr();
    p.tables.heights[t] = given[t].size(0);
    p.tables.row_bytes[t] = given[t].stride(0) * (int64_t)given[t].element_size();
    p.tables.column_bytes[t] = given[t].stride(1) * (int64_t)given[t].element_size();
  }
  p.tables.dim = dim;
  p.tables.bits = (int)bits;
  p.tables.element = element_of(type);
  p.bags = c.ids.bags;
  p.errors = on.errors;
  return c;
}

// ---- forward ---------------------------------------------------------------------------

Tensor hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                            const Tensor& quotient_b, const Tensor& remainder_b,
                            const Tensor& quotient_c, const Tensor& remainder_c,
                            int64_t num_buckets, int64_t seed, std::string mode,
                            const OptionalTensor& weights, bool include_last, bool prehashed,
                            bool /*sparse*/) {
  const OnDevice on("hashed_embedding_bag", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_form(on.op, given);
  check_heights(on.op, given, num_buckets);
  Call c = read_call(on, given, quotient_b.size(1), 0, ids, offsets, mode, weights, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  Tensor out =
      new_tensor(quotient_b, {c.params.bags.bags, quotient_b.size(1)}, quotient_b.scalar_type());
  c.params.out = out.mutable_data_ptr();
  on.check(gpu::hashed_embedding_bag_launch(c.params, on.stream));
  return out;
}

Tensor quantized_hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                                      const Tensor& quotient_b, const Tensor& remainder_b,
                                      const Tensor& quotient_c, const Tensor& remainder_c,
                                      int64_t num_buckets, int64_t dim, int64_t bits, int64_t seed,
                                      std::string mode, const OptionalTensor& weights,
                                      bool include_last, bool prehashed, ScalarType output_dtype) {
  const OnDevice on("quantized_hashed_embedding_bag", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_packed(on.op, given, num_buckets, dim, bits);
  check_output_dtype(on.op, output_dtype);
  Call c = read_call(on, given, dim, bits, ids, offsets, mode, weights, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  const ScalarType type = written_type(output_dtype);
  Tensor out = new_tensor(quotient_b, {c.params.bags.bags, dim}, type);
  c.params.out = out.mutable_data_ptr();
  c.params.out_element = element_of(type);
  on.check(gpu::hashed_embedding_bag_launch(c.params, on.stream));
  return as_type(out, output_dtype);
}

// ---- gradient of per_sample_weights ----------------------------------------------------

Tensor weight_gradient(const OnDevice& on, Call& c, const Tensor& grad, ScalarType type) {
  const int64_t bags = c.params.bags.bags, dim = c.params.tables.dim;
  check_floating(on.op, "grad", grad);
  check_together(on.op, "grad", grad, c.tables[0]);
  LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == bags && grad.size(1) == dim, on.op, "grad",
               "wanted shape (", bags, ", ", dim, "), got ", shape(grad));
  const Tensor g = as_type(grad, type);
  Tensor out = torch::stable::new_zeros(c.ids.ids, c.ids.ids.sizes(), type);
  c.params.grad = g.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  on.check(gpu::hashed_weight_gradient_launch(c.params, on.stream));
  return out;
}

Tensor backward_weights(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                        const Tensor& quotient_b, const Tensor& remainder_b,
                        const Tensor& quotient_c, const Tensor& remainder_c, int64_t num_buckets,
                        int64_t seed, bool include_last, bool prehashed) {
  const OnDevice on("hashed_embedding_bag_backward_weights", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_form(on.op, given);
  check_heights(on.op, given, num_buckets);
  Call c =
      read_call(on, given, quotient_b.size(1), 0, ids, offsets, "sum", std::nullopt, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  return weight_gradient(on, c, grad, compute_type(quotient_b.scalar_type()));
}

Tensor quantized_backward_weights(const Tensor& grad, const Tensor& ids,
                                  const OptionalTensor& offsets, const Tensor& quotient_b,
                                  const Tensor& remainder_b, const Tensor& quotient_c,
                                  const Tensor& remainder_c, int64_t num_buckets, int64_t dim,
                                  int64_t bits, int64_t seed, bool include_last, bool prehashed) {
  const OnDevice on("quantized_hashed_embedding_bag_backward", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_packed(on.op, given, num_buckets, dim, bits);
  Call c = read_call(on, given, dim, bits, ids, offsets, "sum", std::nullopt, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  return weight_gradient(on, c, grad, ScalarType::Float);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) {
  m.impl("hashed_embedding_bag", TORCH_BOX(&hashed_embedding_bag));
  m.impl("quantized_hashed_embedding_bag", TORCH_BOX(&quantized_hashed_embedding_bag));
  m.impl("hashed_embedding_bag_backward_weights", TORCH_BOX(&backward_weights));
  m.impl("quantized_hashed_embedding_bag_backward", TORCH_BOX(&quantized_backward_weights));
}

}  // namespace lirank
