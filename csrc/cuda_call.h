// The Torch side of a CUDA call: device, stream, results on the device, and runtime errors.
//
// Nothing here needs a symbol of libtorch_cuda.so at link time. The library can therefore be built
// with a CPU build of torch, and it finds the current stream in the process that loads it. The CUDA
// runtime is linked into the library (setup.py). Streams and memory belong to the driver, so they
// are valid in every runtime of a process.
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "errors.cuh"

namespace lirank {

inline cudaStream_t current_stream(int32_t device) {
#if defined(LIRANK_ON_HOST)  // kernels run on the host in tests (tests/cuda_on_host.h)
  return nullptr;
#else
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return torch_cuda ? (Get)dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device, &stream) != 0)
    throw std::runtime_error("lirank: this process has no libtorch_cuda.so with a current stream");
  return (cudaStream_t)stream;
#endif
}

inline void check_cuda(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("lirank::") + op + ": CUDA: " + cudaGetErrorString(status));
}

// Some tensors of a CUDA call may be on the CPU: one CUDA tensor is enough for PyTorch to pick
// CUDA.
inline int32_t cuda_index(const char* op, const char* argument, const Tensor& t) {
#if !defined(LIRANK_ON_HOST)
  LIRANK_CHECK(t.is_cuda(), op, argument,
               "wanted a CUDA tensor like the others, got one on another device");
#endif
  return t.get_device_index();
}

// Makes the device of the tensor `argument` current, for the scope of one op.
struct OnDevice {
  OnDevice(const char* op, const char* argument, const Tensor& t)
      : op(op),
        index(cuda_index(op, argument, t)),
#if !defined(LIRANK_ON_HOST)
        guard(index),
#endif
        stream(current_stream(index)) {
    // This library's runtime is not torch's: each keeps a current device of its own.
    check(cudaSetDevice(index));
    errors = gpu::errors_address();
    if (errors == nullptr) throw std::runtime_error(std::string("lirank::") + op + ": no device");
  }

  void check(cudaError_t status) const { check_cuda(op, status); }

  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
  }

  // A number that a kernel has written, waited for.
  template <typename T>
  T read(const void* from) const {
    T value{};
    check(cudaMemcpyAsync(&value, from, sizeof value, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    return value;
  }

  const char* op;
  int32_t index;
#if !defined(LIRANK_ON_HOST)
  torch::stable::accelerator::DeviceGuard guard;
#endif
  cudaStream_t stream;
  gpu::Errors* errors;
};

// Every tensor of a call has to lie where the first does: a kernel would read another device's
// memory, or the host's.
inline void check_together(const char* op, const char* argument, const Tensor& t,
                           const Tensor& first) {
  LIRANK_CHECK(t.is_cuda() == first.is_cuda() && t.get_device_index() == first.get_device_index(),
               op, argument, "wanted it on the device of the first tensor, got another");
}

// Kernels read tables where they lie. A table that they cannot read would be copied whole in every
// call, gigabytes a look-up, so it is refused.
inline void check_in_place(const char* op, const char* argument, const Tensor& packed) {
  LIRANK_CHECK(
      packed.is_contiguous(), op, argument,
      "wanted a contiguous table, got a strided one; make a copy once, with .contiguous()");
  const uintptr_t past = (uintptr_t)packed.const_data_ptr() % 8;
  LIRANK_CHECK(past == 0, op, argument, "wanted a table whose address is a multiple of 8, got one ",
               past, " bytes past it; make a copy once, with .clone()");
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> size, ScalarType type) {
  return torch::stable::new_empty(like, {size.begin(), size.size()}, type);
}

}  // namespace lirank

#if defined(LIRANK_ON_HOST)
#define CUDA CPU  // the key under which STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) registers
#endif
