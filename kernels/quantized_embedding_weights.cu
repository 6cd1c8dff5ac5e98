// The gradient of per-sample weights of look-ups in quantized tables, on the GPU.
#include "quantized_embedding.cuh"
#include "quantized_tables.cuh"

namespace lirank::gpu {
namespace {

// <grad of a bag, dequantized row> of the four ids from `i` on, by the lanes of a group. All lanes
// of the warp take part in the sums, even if their bag has no such ids.
template <int bits, typename Id>
__device__ __forceinline__ void dot_rows(const PoolParams& p, const Table& t, int64_t index,
                                         int64_t i, int64_t last, const float* grad, int lane,
                                         int lanes) {
  constexpr int kColumns = 64 / bits;
  Id row[kRows];
  read_ids(p.bags, i, last, row);
  rowwise::Pair pair[kRows];
  float dot[kRows] = {}, alone = 0;
  bool bad = false;
  for (int64_t at = lane * 8; at - lane * 8 < t.code_bytes; at += lanes * 8) {
    Words<8> codes[kRows];
    bad = read_rows<8>(t, row, at, codes, pair);
    const int64_t first = at * 8 / bits;
    float g[kColumns];
    load_columns<kColumns>(grad + first, i < last ? t.dim - first : 0, g);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) alone += g[c];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      float code[kColumns] = {};
      add_codes<bits, 8>(codes[k], 1.0f, code);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) dot[k] = __fmaf_rn(g[c], code[c], dot[k]);
    }
  }
  if (bad && lane == 0) report_rows<Id>(p, t, index, i, i + kRows < last ? i + kRows : last);
  for (int d = lanes / 2; d > 0; d /= 2) {
    alone += __shfl_xor_sync(kWarp, alone, d);
#pragma unroll
    for (int k = 0; k < kRows; ++k) dot[k] += __shfl_xor_sync(kWarp, dot[k], d);
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k)
    if (lane == 0 && i + k < last)
      ((float*)p.out)[i + k] = pair[k].scale * dot[k] + pair[k].mid * alone;
}

// d out / d per_sample_weights: <grad of the bag, dequantized row>.
//
// The grid is that of pool_kernel. A group of lanes takes a bag, with 8 bytes of codes per lane. It
// processes four ids at a time, and loads all their rows before it uses the first. The gradient of
// the bag is read 16 bytes at a time, once per four ids, and mostly from L1. Each row is read once.
// Ids outside of all bags keep the zero that the caller wrote. Not yet measured.
template <int bits, typename Id>
__global__ void __launch_bounds__(kBlock, 2) weight_gradient_kernel(const PoolParams p) {
  const int64_t bags = p.bags.bag_count;
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) return;
    const Table& t = *found;
    const int lanes = lanes_for(t.code_bytes / 8), lane = threadIdx.x % lanes;
    const int64_t groups = kBlock / lanes, mine = threadIdx.x / lanes;
    // All lanes of a warp make the same number of rounds: every bound below is that of a warp.
    for (int64_t base = (int64_t)blockIdx.x * groups; base < bags; base += gridDim.x * groups) {
      const int64_t bag = base + mine < bags ? base + mine : bags - 1;
      Range ids = range_of(p.bags, index * bags + bag, p.errors, base + mine < bags && lane == 0);
      if (base + mine >= bags) ids = {0, 0};
      const float* grad = p.grad + bag * p.set.width + t.column;
      for (int64_t i = ids.begin; __any_sync(kWarp, i < ids.end); i += kRows)
        dot_rows<bits, Id>(p, t, index, i, ids.end, grad, lane, lanes);
    }
  }
}

template <int bits>
cudaError_t weights_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  return p.bags.ids_are_int64 ? launch(weight_gradient_kernel<bits, int64_t>, grid, stream, p)
                              : launch(weight_gradient_kernel<bits, int32_t>, grid, stream, p);
}

}  // namespace

cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& p, cudaStream_t stream) {
  return p.set.bits == 8 ? weights_launch<8>(p, bag_grid(p), stream)
                         : weights_launch<4>(p, bag_grid(p), stream);
}

}  // namespace lirank::gpu
