// Starting kernels, and what the table kernels share: bags, elements, groups of lanes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bags.cuh"
#include "errors.cuh"

namespace lirank::gpu {

constexpr int kBlock = 256;  // threads

#if !defined(LIRANK_LAUNCH)
#define LIRANK_LAUNCH(kernel, grid, stream, params) kernel<<<grid, kBlock, 0, stream>>>(params)
#endif

template <typename Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, cudaStream_t stream, const Params& params) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  LIRANK_LAUNCH(kernel, grid, stream, params);
  return cudaGetLastError();
}

// Blocks for `items` of which a block takes `each`; kernels stride over the rest.
inline unsigned blocks_for(int64_t items, int64_t each, int64_t most = 1 << 20) {
  const int64_t wanted = (items + each - 1) / each;
  return (unsigned)(wanted < most ? wanted : most);
}

__device__ inline int64_t start_of(const Bags& b, int64_t item) {
  if (b.fixed >= 0) return item * b.fixed;
  if (item >= b.offset_count) return b.count;
  return b.wide_offsets ? ((const int64_t*)b.offsets)[item] : ((const int32_t*)b.offsets)[item];
}

struct Range {
  int64_t begin, end;
};

// The ids of an item; none where the offsets around it do not fit, which `tell` counts.
__device__ inline Range range_of(const Bags& b, int64_t item, Errors* errors, bool tell) {
  const int64_t begin = start_of(b, item), end = start_of(b, item + 1);
  if (begin >= 0 && end >= begin && end <= b.count && (item > 0 || begin == 0)) return {begin, end};
  if (tell) report(errors, Wrong::offsets, item, begin, end, b.count);
  return {0, 0};
}

__device__ inline int64_t id_at(const Bags& b, int64_t i) {
  return b.wide_ids ? ((const int64_t*)b.ids)[i] : ((const int32_t*)b.ids)[i];
}

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(double* to, double x) { *to = x; }
__device__ inline void put(__half* to, float x) { *to = __float2half_rn(x); }
__device__ inline void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// 16 bytes of results at a time where they lie so, else one by one.
template <int columns, typename Out, typename Sum>
__device__ inline void store_columns(Out* to, const Sum (&total)[columns], int64_t left) {
  constexpr int kEach = 16 / (int)sizeof(Out);
  if constexpr (columns % kEach == 0) {
    if (left >= columns && (uintptr_t)to % 16 == 0) {
#pragma unroll
      for (int c = 0; c < columns; c += kEach) {
        alignas(16) Out part[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) put(part + j, total[c + j]);
        *(uint4*)(to + c) = *(const uint4*)part;
      }
      return;
    }
  }
#pragma unroll
  for (int c = 0; c < columns; ++c)
    if (c < left) put(to + c, total[c]);
}

// Lanes that share a row: the power of two that holds `parts`, 32 at most.
__device__ inline int lanes_for(int64_t parts) {
  int lanes = 1;
  while (lanes < 32 && lanes < parts) lanes *= 2;
  return lanes;
}

template <typename T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

}  // namespace lirank::gpu
