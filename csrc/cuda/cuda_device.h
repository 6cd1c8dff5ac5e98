// What a call asks of PyTorch about a CUDA device. A test that runs kernels on the host puts a
// header of the same name in front of this one, which is why it is included as
// <cuda/cuda_device.h>.
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "library/checks.h"

namespace lirank {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return torch_cuda ? (Get)dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device, &stream) != 0)
    throw std::runtime_error("lirank: this process has no libtorch_cuda.so with a current stream");
  return (cudaStream_t)stream;
}

// Some tensors of a CUDA call may be on the CPU: one CUDA tensor is enough for PyTorch to pick
// CUDA.
inline int32_t cuda_index(const char* op, const char* argument, const Tensor& t) {
  LIRANK_CHECK(t.is_cuda(), op, argument,
               "wanted a CUDA tensor like the others, got one on another device");
  return t.get_device_index();
}

}  // namespace lirank
