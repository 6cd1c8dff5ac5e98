// Hashes on CUDA tensors: results and launches.
#include "hashing_ops.h"

#include "cuda/cuda_call.h"
#include "hashing.cuh"

namespace lirank {
namespace {

struct Cuda : CudaBackend {
  static Tensor hash_all(const Device& on, const Tensor& ids, uint32_t seed) {
    Tensor out = torch::stable::new_empty(ids, ids.sizes(), ScalarType::Long);
    gpu::HashParams p{};
    p.ids = ids.const_data_ptr<int64_t>();
    p.count = ids.numel();
    p.seed = seed;
    p.out = out.mutable_data_ptr<int64_t>();
    on.check(gpu::murmur_hash_launch(p, on.stream));
    return out;
  }

  static Tensor hash_strings(const Device& on, const Tensor& bytes, const Tensor& offsets,
                             uint32_t seed) {
    Tensor out = new_tensor(offsets, {offsets.numel() - 1}, ScalarType::Long);
    gpu::HashParams p{};
    p.bytes = bytes.const_data_ptr<uint8_t>();
    p.offsets = offsets.const_data_ptr<int64_t>();
    p.count = offsets.numel() - 1;
    p.total = bytes.numel();
    p.seed = seed;
    p.out = out.mutable_data_ptr<int64_t>();
    p.errors = on.errors;
    on.check(gpu::hash_strings_launch(p, on.stream));
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_hashing<Cuda>(m); }

}  // namespace lirank
