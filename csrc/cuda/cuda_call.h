// The Torch side of a CUDA call: device, stream, results on the device, and runtime errors.
//
// Nothing here needs a symbol of libtorch_cuda.so at link time. The library can therefore be built
// with a CPU build of torch, and it finds the current stream in the process that loads it. The CUDA
// runtime is linked into the library (setup.py). Streams and memory belong to the driver, so they
// are valid in every runtime of a process.
#pragma once
#include <cuda/cuda_device.h>
#include <cuda_runtime_api.h>

#include "bags_checks.h"
#include "errors.cuh"

namespace lirank {

inline void check_cuda(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("lirank::") + op + ": CUDA: " + cudaGetErrorString(status));
}

// Makes the device of the tensor `argument` current, for the scope of one op.
struct OnDevice {
  OnDevice(const char* op, const char* argument, const Tensor& t)
      : op(op), index(cuda_index(op, argument, t)), guard(index), stream(current_stream(index)) {
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

  // A number that a kernel writes. Waits for it.
  template <typename T>
  T read(const void* from) const {
    T value{};
    check(cudaMemcpyAsync(&value, from, sizeof value, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    return value;
  }

  const char* op;
  int32_t index;
  DeviceGuard guard;
  cudaStream_t stream;
  gpu::Errors* errors;
};

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

// What the front of every op (<stem>_ops.h) needs of its backend, for CUDA.
struct CudaBackend {
  using Device = OnDevice;

  // Most columns of a packed table: kernels keep the stride of rows in 32 bits.
  static constexpr int64_t kWidest = 1 << 30;

  static Tensor as_type(const Tensor& t, ScalarType type) { return lirank::as_type(t, type); }

  // Kernels check the values of offsets (kernels/errors.cuh): the host would have to wait.
  static void check_offsets(const char* /*op*/, const char* /*ids_name*/, const Bags& /*b*/) {}

  // Kernels write three of the four dtypes. float64 is widened from float32, in which they sum.
  static ScalarType written_type(ScalarType output) {
    return output == ScalarType::Double ? ScalarType::Float : output;
  }
};

}  // namespace lirank
