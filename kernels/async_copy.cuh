// Copies into shared memory that a thread does not wait for: cp.async, from sm_80 on.
//
// What is on its way takes no registers. Each thread here reads only what it copied itself, so that
// it waits for its own copies and for no barrier.
#pragma once
#include <cuda_runtime_api.h>

#include <cstring>

namespace lirank::gpu {

// 4, 8 or 16 bytes, both addresses on as many; zeros where there is nothing to read.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
#if defined(__CUDA_ARCH__)
  const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  const size_t from = __cvta_generic_to_global(global);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(bytes),
                 "r"(there ? bytes : 0)
                 : "memory");
#else
  if (there)
    memcpy(shared, global, bytes);
  else
    memset(shared, 0, bytes);
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all groups but the latest `left` have arrived.
template <int left>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

}  // namespace lirank::gpu
