// A stable sort of rows with the positions that hold them.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lirank::gpu {

struct SortParams {
  const uint32_t* rows;
  const int32_t* positions;
  uint32_t* sorted_rows;
  int32_t* sorted_positions;
  int count;
  int bits;    // of the highest row
  void* work;  // sort_work_bytes(count, bits)
  size_t work_bytes;
};

cudaError_t sort_work_bytes(int count, int bits, size_t* bytes);
cudaError_t sort_launch(const SortParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
