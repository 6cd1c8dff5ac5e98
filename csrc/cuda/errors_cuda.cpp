// What lirank_ext.check_errors() reads, for Python (ctypes) and C++ servers alike.
#include "cuda/cuda_call.h"
#include "library/export.h"

static_assert(sizeof(lirank::gpu::Errors) == 6 * sizeof(int64_t), "six numbers");

// Waits for `device`; found: count, kind, position, value, table, limit. The findings are cleared.
// Where no op has run on the device, nothing is found. Returns 0, or the number of the CUDA error.
LIRANK_EXPORT int lirank_take_errors(int device, int64_t* found) {
  return (int)lirank::gpu::take_errors(device, (lirank::gpu::Errors*)found);
}

// Python finds the text in the file, without loading it: that would register the kernels with a
// PyTorch that has no CUDA.
LIRANK_EXPORT const char* lirank_cuda_architectures() {
  return "lirank_ext was built for CUDA architectures " LIRANK_CUDA_ARCHITECTURES;
}
