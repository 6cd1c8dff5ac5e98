// The findings of all kernels on one device, in memory of the module. check_errors() reads them.
#include "errors.cuh"

#include <atomic>

namespace lirank::gpu {

namespace {

__device__ Errors found_here;
constexpr int kDevices = 64;
std::atomic<Errors*> known[kDevices];

// Waits for the findings of the current device.
cudaError_t read_and_clear(Errors* from, Errors* found) {
  cudaError_t status = cudaDeviceSynchronize();
  if (status == cudaSuccess)
    status = cudaMemcpy(found, from, sizeof *found, cudaMemcpyDeviceToHost);
  if (status == cudaSuccess && found->count) status = cudaMemset(from, 0, sizeof *found);
  return status;
}

}  // namespace

// Looked up once per device. The first call of an op is a warm-up, outside of any graph capture.
Errors* errors_address() {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return nullptr;
  Errors* address = known[device].load();
  if (address) return address;
  void* found = nullptr;
  if (cudaGetSymbolAddress(&found, found_here) != cudaSuccess) return nullptr;
  known[device] = (Errors*)found;
  return (Errors*)found;
}

// This library's CUDA runtime has its own current device, so it is set here.
cudaError_t take_errors(int device, Errors* found) {
  *found = {};
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  Errors* from = known[device].load();
  if (!from) return cudaSuccess;
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status != cudaSuccess) return status;
  status = read_and_clear(from, found);
  const cudaError_t restored = cudaSetDevice(before);
  return status == cudaSuccess ? restored : status;
}

}  // namespace lirank::gpu
