// murmur_hash and hash_strings: checks, CPU kernels, schema.
// Source: MurmurHash3_x64_128 (Austin Appleby, public domain).
#include "checks.h"
#include "export.h"
#include "hashing_kernels.h"
#include "hashing_text.h"

namespace lirank {
namespace {

// Keys per task: 16 K ids are 0.25 MB in and out, 10 us of one core.
constexpr int64_t kChunk = 16384;

void check_seed(const char* op, int64_t seed) {
  LIRANK_CHECK(seed >= 0 && seed >> 32 == 0, op, "seed", "wanted a number from 0 to 2^32 - 1, got ",
               seed);
}

Tensor murmur_hash(const Tensor& ids, int64_t seed) {
  const char* op = "murmur_hash";
  check_seed(op, seed);
  check_same_dtype(op, "ids", ids, ScalarType::Long);
  const Tensor from = to_contiguous(ids);
  Tensor out = empty_like_type(from, ScalarType::Long);
  const int64_t* in = from.const_data_ptr<int64_t>();
  int64_t* hashes = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, from.numel(), kChunk, [&](int64_t begin, int64_t end) {
    LIRANK_DISPATCH(hash_ids, in + begin, end - begin, (uint32_t)seed, hashes + begin);
  });
  return out;
}

// All offsets are read before the first byte is: a wrong one must not lead outside.
void check_offsets(const char* op, const int64_t* offsets, int64_t n, int64_t total) {
  LIRANK_CHECK(offsets[0] == 0, op, "offsets", "wanted 0 as the first offset, got ", offsets[0]);
  for (int64_t i = 0; i < n; ++i)
    LIRANK_CHECK(offsets[i] <= offsets[i + 1], op, "offsets",
                 "wanted offsets that never decrease, got ", offsets[i + 1], " after ", offsets[i],
                 " at position ", i + 1);
  LIRANK_CHECK(offsets[n] <= total, op, "offsets", "wanted offsets up to ", total,
               ", the number of bytes, got ", offsets[n]);
}

Tensor hash_strings(const Tensor& bytes, const Tensor& offsets, int64_t seed) {
  const char* op = "hash_strings";
  check_seed(op, seed);
  check_same_dtype(op, "bytes", bytes, ScalarType::Byte);
  check_dim(op, "bytes", bytes, 1);
  check_same_dtype(op, "offsets", offsets, ScalarType::Long);
  check_dim(op, "offsets", offsets, 1);
  LIRANK_CHECK(offsets.numel() > 0, op, "offsets", "wanted at least one offset, got shape ",
               shape(offsets));
  const Tensor text = to_contiguous(bytes), bounds = to_contiguous(offsets);
  const int64_t n = bounds.numel() - 1, total = text.numel();
  const int64_t* at = bounds.const_data_ptr<int64_t>();
  check_offsets(op, at, n, total);
  Tensor out = new_tensor({n}, ScalarType::Long);
  const uint8_t* first = text.const_data_ptr<uint8_t>();
  int64_t* hashes = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, n, kChunk / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      hashes[i] = (int64_t)murmur::hash_bytes(first + at[i], at[i + 1] - at[i], first + total,
                                              (uint32_t)seed);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def("murmur_hash(Tensor ids, int seed=0) -> Tensor");
  m.def("hash_strings(Tensor bytes, Tensor offsets, int seed=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("murmur_hash", TORCH_BOX(&murmur_hash));
  m.impl("hash_strings", TORCH_BOX(&hash_strings));
}

}  // namespace lirank

LIRANK_EXPORT void lirank_parallel_for(int64_t n, int64_t grain,
                                       void (*run)(const void*, int64_t, int64_t),
                                       const void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { run(context, begin, end); });
}
