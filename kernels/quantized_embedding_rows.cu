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

// What the values of a row decide. Operations keep their written order and each is rounded, so the
// bits are those of the CPU.
struct RowScale {
  float top, bottom, scale, mid;
  bool good, constant;

  // guard: NaN if one value is not finite, else zero.
  __device__ RowScale(const RowsParams& p, float high, float low, float guard) {
    top = p.bits == 8 ? 127.0f : 7.0f;
    bottom = -top - 1.0f;
    const float steps = top - bottom;
    scale = __fdiv_rn(__fadd_rn(high, -low), steps);
    mid = __fdiv_rn(__fadd_rn(__fmul_rn(high, -bottom), __fmul_rn(low, top)), steps);
    good = guard == 0 && scale - scale == 0 && mid - mid == 0;
    constant = scale == 0;
    if (constant) scale = 1.0f, mid = high;
  }

  __device__ int code(float w) const {
    if (!good || constant) return 0;
    const float code = rintf(__fdiv_rn(__fadd_rn(w, -mid), scale));
    return (int)fmaxf(bottom, fminf(top, code));
  }

  __device__ void put(const RowsParams& p, int64_t row) const {
    if (!good) tell_row(p, Wrong::row, row);
    p.scale[row] = scale, p.mid[row] = mid;
  }
};

// The largest and the smallest value that `lanes` neighboring lanes have found, and their guards.
__device__ inline void meet(int lanes, float& high, float& low, float& guard) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    if (d >= lanes) continue;
    high = fmaxf(high, __shfl_xor_sync(kWarp, high, d));
    low = fminf(low, __shfl_xor_sync(kWarp, low, d));
    guard = __fadd_rn(guard, __shfl_xor_sync(kWarp, guard, d));
  }
}

constexpr int kParts = 2;                // of 4 values, that a lane keeps of a row
constexpr float kInteger = 12582912.0f;  // 1.5 * 2^23: floats around it are integers

// The codes of four values. A product with 1 / scale is within 2e-5 of the quotient, whose size is
// at most 128.5. It decides the code unless it lies that close to a half; `sure` becomes false
// there, and where 1 / scale is infinite.
__device__ inline uint32_t quick_codes(const float (&w)[4], const RowScale& r, float inverse,
                                       bool& sure) {
  uint32_t bytes = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float q = __fmul_rn(__fadd_rn(w[c], -r.mid), inverse);
    const float code = __fadd_rn(q, kInteger);
    sure = sure && fabsf(__fadd_rn(q, -__fadd_rn(code, -kInteger))) < 0.49995f;
    const float held = fmaxf(kInteger + r.bottom, fminf(kInteger + r.top, code));
    bytes |= (__float_as_uint(held) & 255u) << 8 * c;
  }
  return bytes;
}

__device__ inline uint32_t exact_codes(const float (&w)[4], const RowScale& r) {
  uint32_t bytes = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) bytes |= ((uint32_t)r.code(w[c]) & 255u) << 8 * c;
  return bytes;
}

// Rows of up to 256 values, a multiple of 4, on 16 bytes. A group of lanes takes a row, with two
// parts of 4 values per lane, which stay in registers: 4 bytes in and 1 out per value.
//
// Not yet timed. One warp per row, which divides every value and reads the row twice, took 0.48 ms
// with the call on an H100 (1M rows of 128), where a copy of the same bytes takes 0.22 ms.
__global__ void __launch_bounds__(kBlock, 6) quantize_kernel(const RowsParams p) {
  const int lanes = lanes_for((p.dim + 4 * kParts - 1) / (4 * kParts)), lane = threadIdx.x % lanes;
  const int64_t rows = kBlock / lanes;
  // All lanes of a warp make the same number of rounds, as they meet.
  for (int64_t base = (int64_t)blockIdx.x * rows; base < p.rows; base += gridDim.x * rows) {
    const int64_t mine = base + threadIdx.x / lanes, row = mine < p.rows ? mine : p.rows - 1;
    const float* from = p.weight + row * p.dim;
    float w[kParts][4];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const int column = (k * lanes + lane) * 4;
      const float4 x = __ldg((const float4*)(from + (column < p.dim ? column : 0)));
      w[k][0] = x.x, w[k][1] = x.y, w[k][2] = x.z, w[k][3] = x.w;
    }
    float high = w[0][0], low = w[0][0], guard = 0;
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        high = fmaxf(high, w[k][c]);
        low = fminf(low, w[k][c]);
        guard = __fmaf_rn(w[k][c], 0.0f, guard);
      }
    }
    meet(lanes, high, low, guard);
    if (mine >= p.rows) continue;
    const RowScale r(p, high, low, guard);
    uint32_t bytes[kParts];
    bool sure = r.good && !r.constant;
    const float inverse = __fdiv_rn(1.0f, r.scale);
#pragma unroll
    for (int k = 0; k < kParts; ++k) bytes[k] = quick_codes(w[k], r, inverse, sure);
    if (!sure) {
#pragma unroll
      for (int k = 0; k < kParts; ++k) bytes[k] = exact_codes(w[k], r);
    }
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const int column = (k * lanes + lane) * 4;
      if (column < p.dim) *(uint32_t*)(p.codes + row * p.dim + column) = bytes[k];
    }
    if (lane == 0) r.put(p, row);
  }
}

// Rows of any length. A warp takes a row and reads it twice, the second time from L1.
__global__ void __launch_bounds__(kBlock) quantize_any_kernel(const RowsParams p) {
  const int lane = threadIdx.x % 32;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const float* w = p.weight + row * p.dim;
    float high = w[0], low = w[0], guard = 0;
    for (int64_t c = lane; c < p.dim; c += 32) {
      high = fmaxf(high, w[c]);
      low = fminf(low, w[c]);
      guard = __fmaf_rn(w[c], 0.0f, guard);
    }
    meet(32, high, low, guard);
    const RowScale r(p, high, low, guard);
    for (int64_t c = lane; c < p.dim; c += 32) p.codes[row * p.dim + c] = (int8_t)r.code(w[c]);
    if (lane == 0) r.put(p, row);
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
  if (p.dim % 4 || p.dim > 128 * kParts || (uintptr_t)p.weight % 16)
    return launch(quantize_any_kernel, row_grid(p), stream, p);
  const int lanes = lanes_for((p.dim + 4 * kParts - 1) / (4 * kParts));
  // Blocks stride over the rows, so that what does not depend on the row is computed once.
  const dim3 grid(blocks_for(p.rows, kBlock / lanes, 24 * multiprocessors()));
  return launch(quantize_kernel, grid, stream, p);
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
