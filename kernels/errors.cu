// The findings of every kernel on one device: memory of the module, read by check_errors().
#include "errors.cuh"

#include <atomic>

namespace lirank::gpu {

namespace {

__device__ Errors found_here;
constexpr int kDevices = 64;
std::atomic<Errors*> known[kDevices];

// Findings of the current device, waited for.
cudaError_t read_and_clear(Errors* from, Errors* found) {
  cudaError_t status = cudaDeviceSynchronize();
  if (status == cudaSuccess)
    status = cudaMemcpy(found, from, sizeof *found, cudaMemcpyDeviceToHost);
  if (status == cudaSuccess && found->count) status = cudaMemset(from, 0, sizeof *found);
  return status;
}

}  // namespace

// Asked for once a device: the first call of an op is its warm-up, outside of any capture.
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

// The current device of this library's runtime is not that of PyTorch's: it is set here.
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
