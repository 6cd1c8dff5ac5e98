// The one sort that kernels/sort.cu takes from CUB, on the host.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* work, size_t& work_bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, int count, int first_bit,
                               int end_bit, cudaStream_t) {
    if (work == nullptr) {
      work_bytes = 1;
      return cudaSuccess;
    }
    const auto part = [&](int i) {
      return keys[i] >> first_bit & ((Key) ~(Key)0 >> (32 - end_bit));
    };
    std::vector<int> order((size_t)count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return part(a) < part(b); });
    for (int i = 0; i < count; ++i) {
      sorted_keys[i] = keys[order[(size_t)i]];
      sorted_values[i] = values[order[(size_t)i]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
