// Quantizing and packing tables on the GPU, once a table. Layout:
// csrc/quantized_embedding_layout.h.
#include "launch.cuh"
#include "quantized_embedding.cuh"
#include "quantized_embedding_layout.h"

namespace lirank::gpu {
namespace {

__device__ inline int64_t first_row() { return ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; }
__device__ inline int64_t row_step() { return (int64_t)gridDim.x * (kBlock / 32); }

__device__ inline void tell_row(const RowsParams& p, Wrong kind, int64_t row) {
  atomicMin(p.bad, (unsigned long long)row);
  if (p.errors) report(p.errors, kind, row, 0, 0, p.rows);
}

// One warp per row. A row is read twice, the second time from L1. A value takes 4 bytes in and 1
// out, and copy bandwidth is the limit. Operations keep their written order and each is rounded, so
// the bits are those of the CPU.
__global__ void __launch_bounds__(kBlock) quantize_kernel(const RowsParams p) {
  const int lane = threadIdx.x % 32;
  const float top = p.bits == 8 ? 127.0f : 7.0f, bottom = -top - 1.0f, steps = top - bottom;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const float* w = p.weight + row * p.dim;
    int8_t* codes = p.codes + row * p.dim;
    float high = w[0], low = w[0], guard = 0;
    for (int64_t c = lane; c < p.dim; c += 32) {
      high = fmaxf(high, w[c]);
      low = fminf(low, w[c]);
      guard = __fadd_rn(guard, __fmul_rn(w[c], 0.0f));  // NaN as soon as one is not finite
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      high = fmaxf(high, __shfl_xor_sync(kWarp, high, d));
      low = fminf(low, __shfl_xor_sync(kWarp, low, d));
    }
    guard = warp_sum(guard);
    float scale = __fdiv_rn(__fadd_rn(high, -low), steps);
    float mid = __fdiv_rn(__fadd_rn(__fmul_rn(high, -bottom), __fmul_rn(low, top)), steps);
    const bool good = guard == 0 && scale - scale == 0 && mid - mid == 0;
    if (!good && lane == 0) tell_row(p, Wrong::row, row);
    const bool constant = scale == 0;
    if (constant) scale = 1.0f, mid = high;
    for (int64_t c = lane; c < p.dim; c += 32) {
      const float code = rintf(__fdiv_rn(__fadd_rn(w[c], -mid), scale));
      codes[c] = good && !constant ? (int8_t)fmaxf(bottom, fminf(top, code)) : (int8_t)0;
    }
    if (lane == 0) p.scale[row] = scale, p.mid[row] = mid;
  }
}

// One warp per row and one lane per column: 1 byte in and 4 bytes out per value.
__global__ void __launch_bounds__(kBlock) dequantize_kernel(const RowsParams p) {
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const float scale = p.scale[row], mid = p.mid[row];
    for (int64_t c = threadIdx.x % 32; c < p.dim; c += 32)
      p.out[row * p.dim + c] = rowwise::dequantize(p.codes[row * p.dim + c], scale, mid);
  }
}

// One warp per row and one lane per stored byte, including padding. Runs once per table.
__global__ void __launch_bounds__(kBlock) pack_kernel(const RowsParams p) {
  const rowwise::Layout l = rowwise::layout(p.dim, p.bits);
  const int64_t used = l.apart ? l.code_bytes : l.row_bytes;
  const int lane = threadIdx.x % 32;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const int8_t* from = p.codes + row * p.dim;
    uint8_t* to = p.packed + row * l.code_stride;
    uint8_t* pair = p.packed + rowwise::first_pair(l, p.rows) + row * l.pair_stride;
    for (int64_t b = lane; b < used; b += 32) {
      if (to + b >= pair && to + b < pair + 8) continue;
      int byte = 0;
      if (p.bits == 8) {
        byte = b < p.dim ? from[b] : 0;
      } else {
        for (int64_t c = 2 * b; c < 2 * b + 2 && c < p.dim; ++c) {
          if (from[c] < -8 || from[c] > 7) tell_row(p, Wrong::codes, row);
          byte |= (from[c] + 8 & 15) << (c & 1 ? 4 : 0);
        }
      }
      to[b] = (uint8_t)byte;
    }
    if (lane == 0) ((float*)pair)[0] = p.scale[row], ((float*)pair)[1] = p.mid[row];
  }
}

// The inverse, with one lane per column.
__global__ void __launch_bounds__(kBlock) unpack_kernel(const RowsParams p) {
  const rowwise::Layout l = rowwise::layout(p.dim, p.bits);
  const int lane = threadIdx.x % 32;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const uint8_t* from = p.packed + row * l.code_stride;
    const uint8_t* pair = p.packed + rowwise::first_pair(l, p.rows) + row * l.pair_stride;
    for (int64_t c = lane; c < p.dim; c += 32)
      p.codes[row * p.dim + c] =
          p.bits == 8 ? (int8_t)from[c] : (int8_t)rowwise::unpack4(from[c / 2], c);
    if (lane == 0) p.scale[row] = ((const float*)pair)[0], p.mid[row] = ((const float*)pair)[1];
  }
}

dim3 row_grid(const RowsParams& p) { return dim3(blocks_for(p.rows, kBlock / 32)); }

}  // namespace

cudaError_t quantize_rows_launch(const RowsParams& p, cudaStream_t stream) {
  return launch(quantize_kernel, row_grid(p), stream, p);
}
cudaError_t dequantize_rows_launch(const RowsParams& p, cudaStream_t stream) {
  return launch(dequantize_kernel, row_grid(p), stream, p);
}
cudaError_t pack_rows_launch(const RowsParams& p, cudaStream_t stream) {
  return launch(pack_kernel, row_grid(p), stream, p);
}
cudaError_t unpack_rows_launch(const RowsParams& p, cudaStream_t stream) {
  return launch(unpack_kernel, row_grid(p), stream, p);
}

}  // namespace lirank::gpu
