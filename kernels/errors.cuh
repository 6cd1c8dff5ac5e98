// Counters of bad input that kernels find. The host does not wait for a kernel, so a bad index
// reads nothing, gives zeros and is counted here. lirank_ext.check_errors() raises the error later.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lirank::gpu {

// The same numbers as in lirank_ext/library/device_errors.py; only Triton reports a vocabulary.
enum class Wrong : int64_t { none, index, offsets, tables, row, codes, vocabulary };

// One per device. The first finding is stored, the others are only counted.
struct Errors {
  unsigned long long count;
  int64_t kind, position, value, table, limit;
};

// The address on the current device. The memory belongs to the library's module, so nothing is
// allocated.
Errors* errors_address();

// Waits for a device, copies its findings and clears them. There are none if no op has run there.
cudaError_t take_errors(int device, Errors* found);

#if defined(__CUDACC__) || defined(LIRANK_DEVICE_CODE)
__device__ inline void report(Errors* errors, Wrong kind, int64_t position, int64_t value,
                              int64_t table, int64_t limit) {
  if (atomicAdd(&errors->count, 1ull) != 0) return;
  errors->kind = (int64_t)kind;
  errors->position = position;
  errors->value = value;
  errors->table = table;
  errors->limit = limit;
}
#endif

}  // namespace lirank::gpu
