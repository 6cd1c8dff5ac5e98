// Helpers to launch kernels, and helpers of the table kernels: bags, elements, groups of lanes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>

#include "bags.h"
#include "errors.cuh"

namespace lirank::gpu {

constexpr int kBlock = 256;  // threads
constexpr unsigned kWarp = 0xffffffffu;

#if !defined(LIRANK_LAUNCH)
#define LIRANK_LAUNCH(kernel, grid, stream, params) kernel<<<grid, kBlock, 0, stream>>>(params)
#endif

template <typename Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, cudaStream_t stream, const Params& params) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  LIRANK_LAUNCH(kernel, grid, stream, params);
  return cudaGetLastError();
}

// Number of blocks for `items`, if a block takes `each`. Kernels stride over the rest.
inline unsigned blocks_for(int64_t items, int64_t each, int64_t most = 1 << 20) {
  const int64_t wanted = (items + each - 1) / each;
  return (unsigned)(wanted < most ? wanted : most);
}

// Number of multiprocessors of the current device, which is read once.
inline int64_t multiprocessors() {
  static std::atomic<int> known[64];
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return 1;
  if ((count = known[device].load()) > 0) return count;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 1;
  known[device] = count;
  return count;
}

struct Range {
  int64_t begin, end;
};

// The ids of an item. There are none if its offsets are invalid, which is reported if `tell` is
// set.
__device__ inline Range range_of(const Bags& b, int64_t item, Errors* errors, bool tell) {
  const int64_t begin = b.start(item), end = b.start(item + 1);
  if (begin >= 0 && end >= begin && end <= b.id_count && (item > 0 || begin == 0))
    return {begin, end};
  if (tell) report(errors, Wrong::offsets, item, begin, end, b.id_count);
  return {0, 0};
}

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(double* to, double x) { *to = x; }
__device__ inline void put(__half* to, float x) { *to = __float2half_rn(x); }
__device__ inline void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// One store of 16 bytes. The compiler would turn an assignment to a uint4 into four stores.
__device__ inline void store_16(void* to, const uint4& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
#else
  *(uint4*)to = x;
#endif
}

__device__ inline uint32_t bits_of(__half x) { return __half_as_ushort(x); }
__device__ inline uint32_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

template <typename Out, typename Sum>
__device__ inline uint4 packed_16(const Sum* x) {
  if constexpr (sizeof(Out) == 2) {
    uint32_t w[4];
    Out half[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) put(half + j, x[j]);
#pragma unroll
    for (int j = 0; j < 4; ++j) w[j] = bits_of(half[2 * j]) | bits_of(half[2 * j + 1]) << 16;
    return {w[0], w[1], w[2], w[3]};
  } else {
    static_assert(sizeof(Out) == sizeof(Sum), "float or double");
    uint4 whole;
    memcpy(&whole, x, 16);
    return whole;
  }
}

// Stores 16 bytes of results at a time.
template <int columns, typename Out, typename Sum>
__device__ inline void store_whole(Out* to, const Sum (&total)[columns]) {
  constexpr int kEach = 16 / (int)sizeof(Out);
  static_assert(columns % kEach == 0, "whole parts of 16 bytes");
#pragma unroll
  for (int c = 0; c < columns; c += kEach) store_16(to + c, packed_16<Out>(total + c));
}

// Stores 16 bytes at a time if the address is aligned to 16, otherwise one element at a time.
template <int columns, typename Out, typename Sum>
__device__ inline void store_columns(Out* to, const Sum (&total)[columns], int64_t left) {
  if constexpr (columns % (16 / (int)sizeof(Out)) == 0) {
    if (left >= columns && (uintptr_t)to % 16 == 0) return store_whole<columns>(to, total);
  }
#pragma unroll
  for (int c = 0; c < columns; ++c)
    if (c < left) put(to + c, total[c]);
}

// Loads 16 bytes at a time if the address is aligned to 16. If fewer than `columns` elements are
// left, the rest is zeros.
template <int columns, typename Sum>
__device__ inline void load_columns(const Sum* from, int64_t left, Sum (&to)[columns]) {
  constexpr int kEach = 16 / (int)sizeof(Sum);
  struct alignas(16) Part {
    Sum x[kEach];
  };
  if constexpr (columns % kEach == 0) {
    if (left >= columns && (uintptr_t)from % 16 == 0) {
#pragma unroll
      for (int c = 0; c < columns; c += kEach) {
        const Part part = *(const Part*)(from + c);
#pragma unroll
        for (int j = 0; j < kEach; ++j) to[c + j] = part.x[j];
      }
      return;
    }
  }
#pragma unroll
  for (int c = 0; c < columns; ++c) to[c] = c < left ? from[c] : (Sum)0;
}

// Number of lanes that share a row: the smallest power of two that covers `parts`, at most 32.
__host__ __device__ inline int lanes_for(int64_t parts) {
  int lanes = 1;
  while (lanes < 32 && lanes < parts) lanes *= 2;
  return lanes;
}

template <typename T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kWarp, x, d);
  return x;
}

}  // namespace lirank::gpu
