// The bags of ids of one call, as kernels take them.
#pragma once
#include <cstdint>

namespace lirank::gpu {

enum class Element : int { float32, float64, float16, bfloat16 };

struct Bags {
  const void* ids = nullptr;
  const void* offsets = nullptr;
  const void* weights = nullptr;  // float, or double for float64 tables
  bool wide_ids = true, wide_offsets = true, mean = false;
  // fixed: ids per bag where there are no offsets, else -1. bags: of one table.
  int64_t offset_count = 0, fixed = -1, bags = 0, count = 0;
};

}  // namespace lirank::gpu
