// Bags of ids as every kernel takes them, on the host and on a GPU.
#pragma once
#include "host_device.h"

#include <cstdint>

namespace lirank {

// What tables, weights and results are made of.
enum class Element : int { float32, float64, float16, bfloat16 };

// An item is a bag, or with several tables a (table, bag) pair: item = table * bags + bag. Its ids
// are those from start(item) to start(item + 1).
struct Bags {
  const void* ids = nullptr;      // int64_t or int32_t
  const void* offsets = nullptr;  // int64_t or int32_t; null where every item has `fixed` ids
  const void* weights = nullptr;  // of the ids: float, or double for float64 tables; or null
  bool wide_ids = true, wide_offsets = true;  // int64_t
  bool mean = false;
  int64_t fixed = -1;        // -1 where there are offsets
  int64_t offset_count = 0;  // items beyond them end at `count`
  int64_t bags = 0;          // of one table
  int64_t count = 0;         // ids

  LIRANK_HOST_DEVICE int64_t start(int64_t item) const {
    if (fixed >= 0) return item * fixed;
    if (item >= offset_count) return count;
    return wide_offsets ? ((const int64_t*)offsets)[item]
                        : (int64_t)((const int32_t*)offsets)[item];
  }
};

}  // namespace lirank
