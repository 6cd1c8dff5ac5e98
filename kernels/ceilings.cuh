// A bare gather that measures the ceiling of the device, for the benchmarks.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lirank::gpu {

struct GatherParams {
  const void* rows;        // on 16 bytes
  int64_t row_bytes;       // a multiple of 16
  const int64_t* indices;  // (bags * each), not checked
  int64_t bags, each;
  void* out;  // (bags, row_bytes), on 16 bytes
};

cudaError_t gather_ceiling_launch(const GatherParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
