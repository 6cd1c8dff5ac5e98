// The "CUDA device" of kernels that run on the host, in place of csrc/cuda/cuda_device.h. There is no
// stream, and the ops serve CPU tensors.
#pragma once
#include <cuda_runtime_api.h>

#include "library/checks.h"

namespace lirank {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline cudaStream_t current_stream(int32_t) { return nullptr; }

inline int32_t cuda_index(const char*, const char*, const Tensor& t) {
  return t.get_device_index();
}

}  // namespace lirank

#define CUDA CPU  // the key under which STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) registers
