// Bags of ids as every kernel takes them, on the host and on a GPU.
#pragma once
#include "library/host_device.h"

#include <cstdint>

namespace lirank {

// The types of tables, weights and results.
enum class DType : int { float32, float64, float16, bfloat16 };

// An item is a bag. With several tables it is a (table, bag) pair: item = table * bag_count + bag.
// The ids of an item are those from start(item) to start(item + 1).
struct Bags {
  const void* ids = nullptr;      // int64_t or int32_t
  const void* offsets = nullptr;  // int64_t or int32_t; null if every item has ids_per_bag ids
  const void* weights = nullptr;  // of the ids: float, or double for float64 tables; or null
  bool ids_are_int64 = true, offsets_are_int64 = true;
  bool mean = false;         // else the sum
  int64_t ids_per_bag = -1;  // -1 if there are offsets
  int64_t offset_count = 0;  // an item beyond the offsets starts at id_count
  int64_t bag_count = 0;     // of one table
  int64_t id_count = 0;

  LIRANK_HOST_DEVICE int64_t start(int64_t item) const {
    if (ids_per_bag >= 0) return item * ids_per_bag;
    if (item >= offset_count) return id_count;
    return offsets_are_int64 ? ((const int64_t*)offsets)[item]
                             : (int64_t)((const int32_t*)offsets)[item];
  }

  LIRANK_HOST_DEVICE int64_t id(int64_t i) const {
    return ids_are_int64 ? ((const int64_t*)ids)[i] : (int64_t)((const int32_t*)ids)[i];
  }
};

}  // namespace lirank
