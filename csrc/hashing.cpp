// Hashes on the CPU.
#include "hashing_ops.h"

#include "library/cpu_backend.h"
#include "library/export.h"
#include "simd/tables/hashing_kernels.h"
#include "hashing_text.h"

namespace lirank {
namespace {

// Keys per task. 16 K ids are 0.25 MB read and written, and take one core 10 us.
constexpr int64_t kChunk = 16384;

// All offsets are checked before the first byte is read, so that a bad one cannot lead outside.
void check_text_offsets(const char* op, const int64_t* offsets, int64_t n, int64_t total) {
  LIRANK_CHECK(offsets[0] == 0, op, "offsets", "wanted 0 as the first offset, got ", offsets[0]);
  for (int64_t i = 0; i < n; ++i)
    LIRANK_CHECK(offsets[i] <= offsets[i + 1], op, "offsets",
                 "wanted offsets that never decrease, got ", offsets[i + 1], " after ", offsets[i],
                 " at position ", i + 1);
  LIRANK_CHECK(offsets[n] <= total, op, "offsets", "wanted offsets up to ", total,
               ", the number of bytes, got ", offsets[n]);
}

struct Cpu : CpuBackend {
  static Tensor hash_all(const Device&, const Tensor& ids, uint32_t seed) {
    Tensor out = empty_like_type(ids, ScalarType::Long);
    const int64_t* in = ids.const_data_ptr<int64_t>();
    int64_t* hashes = out.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, ids.numel(), kChunk, [&](int64_t begin, int64_t end) {
      LIRANK_DISPATCH(hash_ids, in + begin, end - begin, seed, hashes + begin);
    });
    return out;
  }

  static Tensor hash_strings(const Device& on, const Tensor& bytes, const Tensor& offsets,
                             uint32_t seed) {
    const int64_t n = offsets.numel() - 1, total = bytes.numel();
    const int64_t* at = offsets.const_data_ptr<int64_t>();
    check_text_offsets(on.op, at, n, total);
    Tensor out = new_tensor({n}, ScalarType::Long);
    const uint8_t* first = bytes.const_data_ptr<uint8_t>();
    int64_t* hashes = out.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, n, kChunk / 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        hashes[i] =
            (int64_t)murmur::hash_bytes(first + at[i], at[i + 1] - at[i], first + total, seed);
    });
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_hashing(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_hashing<Cpu>(m); }

}  // namespace lirank

LIRANK_EXPORT void lirank_parallel_for(int64_t n, int64_t grain,
                                       void (*run)(const void*, int64_t, int64_t),
                                       const void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { run(context, begin, end); });
}
