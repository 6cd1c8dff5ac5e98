// Launches of the CUDA kernels of the hashes, for the Torch side.
#pragma once
#include <cuda_runtime_api.h>

#include "errors.cuh"

namespace lirank::gpu {

struct HashParams {
  const int64_t* ids;
  const uint8_t* bytes;
  const int64_t* offsets;  // (count + 1,)
  int64_t count, total;
  uint32_t seed;
  int64_t* out;
  Errors* errors;
};

cudaError_t murmur_hash_launch(const HashParams& params, cudaStream_t stream);
cudaError_t hash_strings_launch(const HashParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
