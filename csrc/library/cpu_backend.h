// What the front of every op (<stem>_ops.h) needs of its backend, for the CPU. The CUDA twin is
// CudaBackend in cuda_call.h.
#pragma once
#include "bags_checks.h"
#include "simd/tables/bags_kernels.h"
#include "library/convert.h"

namespace lirank {

struct CpuBackend {
  // Where a call runs. On the CPU there is nothing to set.
  struct Device {
    Device(const char* op, const char* /*argument*/, const Tensor& /*t*/) : op(op) {}
    const char* op;
  };

  // Most columns of a packed table. Sizes in bytes then stay far below 2^63.
  static constexpr int64_t kWidest = 1 << 30;

  static Tensor as_type(const Tensor& t, ScalarType type) { return as_float_type(t, type); }

  static void check_offsets(const char* op, const char* ids_name, const Bags& b) {
    if (b.offsets_are_int64)
      check_values(op, ids_name, (const int64_t*)b.offsets, b);
    else
      check_values(op, ids_name, (const int32_t*)b.offsets, b);
  }

 private:
  template <typename Offset>
  static void check_values(const char* op, const char* ids_name, const Offset* offsets,
                           const Bags& b) {
    const int64_t n = b.offset_count;
    if (n == 0) return;
    const bool rising = LIRANK_DISPATCH(rise, offsets, n);
    LIRANK_CHECK(offsets[0] == 0, op, "offsets", "wanted 0 first, got ", offsets[0]);
    for (int64_t i = 1; i < n && !rising; ++i)
      LIRANK_CHECK(offsets[i] >= offsets[i - 1], op, "offsets", "wanted no decrease, got ",
                   offsets[i], " after ", offsets[i - 1], " at position ", i);
    LIRANK_CHECK((int64_t)offsets[n - 1] <= b.id_count, op, "offsets", "wanted at most ",
                 b.id_count, " (the number of ", ids_name, "), got ", offsets[n - 1],
                 " at position ", n - 1);
  }
};

}  // namespace lirank
