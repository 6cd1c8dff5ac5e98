// murmur_hash and hash_strings on CUDA tensors: checks, results, launches.
#include "hashing.cuh"

#include "cuda_call.h"

namespace lirank {
namespace {

void check_seed(const char* op, int64_t seed) {
  LIRANK_CHECK(seed >= 0 && seed >> 32 == 0, op, "seed", "wanted a number from 0 to 2^32 - 1, got ",
               seed);
}

Tensor murmur_hash(const Tensor& ids, int64_t seed) {
  const char* op = "murmur_hash";
  check_seed(op, seed);
  check_same_dtype(op, "ids", ids, ScalarType::Long);
  const OnDevice on(op, "ids", ids);
  const Tensor from = to_contiguous(ids);
  Tensor out = torch::stable::new_empty(from, from.sizes(), ScalarType::Long);
  gpu::HashParams p{};
  p.ids = from.const_data_ptr<int64_t>();
  p.count = from.numel();
  p.seed = (uint32_t)seed;
  p.out = out.mutable_data_ptr<int64_t>();
  on.check(gpu::murmur_hash_launch(p, on.stream));
  return out;
}

Tensor hash_strings(const Tensor& bytes, const Tensor& offsets, int64_t seed) {
  const char* op = "hash_strings";
  check_seed(op, seed);
  check_same_dtype(op, "bytes", bytes, ScalarType::Byte);
  check_dim(op, "bytes", bytes, 1);
  check_same_dtype(op, "offsets", offsets, ScalarType::Long);
  check_dim(op, "offsets", offsets, 1);
  check_together(op, "offsets", offsets, bytes);
  LIRANK_CHECK(offsets.numel() > 0, op, "offsets", "wanted at least one offset, got shape ",
               shape(offsets));
  const OnDevice on(op, "bytes", bytes);
  const Tensor text = to_contiguous(bytes), bounds = to_contiguous(offsets);
  Tensor out = new_tensor(bounds, {bounds.numel() - 1}, ScalarType::Long);
  gpu::HashParams p{};
  p.bytes = text.const_data_ptr<uint8_t>();
  p.offsets = bounds.const_data_ptr<int64_t>();
  p.count = bounds.numel() - 1;
  p.total = text.numel();
  p.seed = (uint32_t)seed;
  p.out = out.mutable_data_ptr<int64_t>();
  p.errors = on.errors;
  on.check(gpu::hash_strings_launch(p, on.stream));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) {
  m.impl("murmur_hash", TORCH_BOX(&murmur_hash));
  m.impl("hash_strings", TORCH_BOX(&hash_strings));
}

}  // namespace lirank
