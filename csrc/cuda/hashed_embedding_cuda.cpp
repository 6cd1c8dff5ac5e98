// hashed_embedding_bag on CUDA tensors: results and launches.
#include "hashed_embedding_ops.h"

#include "cuda/cuda_call.h"
#include "hashed_embedding.cuh"

namespace lirank {
namespace {

using gpu::HashedParams;

struct Cuda : CudaBackend {
  static Tensor pool(const Device& on, const HashedCall& call, ScalarType output_dtype) {
    const ScalarType type = call.bits ? written_type(output_dtype) : output_dtype;
    HashedParams p = params_of(on, call);
    Tensor out = new_tensor(call.tables[0], {p.bags.bag_count, call.dim}, type);
    p.out = out.mutable_data_ptr();
    p.out_dtype = dtype_of(type);
    on.check(gpu::hashed_embedding_bag_launch(p, on.stream));
    return lirank::as_type(out, output_dtype);
  }

  // grad, and the result, are of `type`.
  static Tensor weight_gradient(const Device& on, const HashedCall& call, const Tensor& grad,
                                ScalarType type) {
    HashedParams p = params_of(on, call);
    Tensor out = torch::stable::new_zeros(call.bags.ids, call.bags.ids.sizes(), type);
    p.grad = grad.const_data_ptr();
    p.out = out.mutable_data_ptr();
    on.check(gpu::hashed_weight_gradient_launch(p, on.stream));
    return out;
  }

 private:
  static HashedParams params_of(const Device& on, const HashedCall& call) {
    HashedParams p{};
    for (int t = 0; t < 4; ++t) {
      const Tensor& table = call.tables[t];
      if (call.bits) check_in_place(on.op, kTableNames[t], table);
      p.tables.base[t] = table.const_data_ptr();
      p.tables.heights[t] = table.size(0);
      p.tables.row_bytes[t] = table.stride(0) * (int64_t)table.element_size();
      p.tables.column_bytes[t] = table.stride(1) * (int64_t)table.element_size();
    }
    p.tables.dim = call.dim;
    p.tables.bits = call.bits;
    p.tables.dtype = call.bits ? DType::float32 : dtype_of(call.tables[0].scalar_type());
    p.rule = call.rule;
    p.bags = call.bags.view;
    p.errors = on.errors;
    return p;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_hashed_bags<Cuda>(m); }

}  // namespace lirank
