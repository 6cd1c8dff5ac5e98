// The device's own ceilings, for benchmarks/ceilings.py (ctypes). No op, no check.
#include "ceilings.cuh"

#include "library/export.h"

// Starts one gather on `stream` of `device`: bags * each rows of row_bytes, by their numbers,
// summed per bag into (bags, row_bytes). Addresses and row_bytes are multiples of 16; indices are
// not checked. Returns 0, or the number of the CUDA error.
LIRANK_EXPORT int lirank_ceiling_gather_cuda(int device, void* stream, const void* rows,
                                             int64_t row_bytes, const int64_t* indices,
                                             int64_t bags, int64_t each, void* out) {
  const cudaError_t status = cudaSetDevice(device);
  if (status != cudaSuccess) return (int)status;
  return (int)lirank::gpu::gather_ceiling_launch({rows, row_bytes, indices, bags, each, out},
                                                 (cudaStream_t)stream);
}
