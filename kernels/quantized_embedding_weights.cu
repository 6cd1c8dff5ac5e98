// The gradient of the weights of look-ups in quantized tables, on the GPU.
#include "codes.cuh"
#include "quantized_embedding.cuh"
#include "quantized_tables.cuh"

namespace lirank::gpu {
namespace {

// Ids of consecutive rows, 0 from `last` on: nobody uses what is read for those.
template <typename Id, int rows>
__device__ __forceinline__ void read_ids(const Bags& b, int64_t i, int64_t last, Id (&row)[rows]) {
#pragma unroll
  for (int k = 0; k < rows; ++k) row[k] = i + k < last ? __ldg((const Id*)b.ids + i + k) : (Id)0;
}

// Codes and pairs of rows, all asked for before the first is used, without a branch: row 0 is read
// in place of one that is not there, and its pair taken for zeros. True where that is so.
template <int bytes, typename Id, int rows>
__device__ __forceinline__ bool read_rows(const Table& t, const Id (&row)[rows], int at,
                                          Words<bytes> (&codes)[rows],
                                          rowwise::Pair (&pair)[rows]) {
  const int from = at < t.readable ? at : 0;
  bool good[rows], bad = false;
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    good[k] = (uint64_t)(int64_t)row[k] < (uint64_t)t.rows;
    const int64_t r = good[k] ? row[k] : 0;
    pair[k] = load_pair(t.pairs + r * t.pair_stride);
    codes[k] = load_words(t.codes + r * t.code_stride + from, codes);
  }
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    if (!good[k]) pair[k] = {0, 0};
    bad = bad || !good[k];
  }
  return bad;
}

// <grad of a bag, dequantized row> of four ids from `i` on, by the lanes of a group. All lanes of
// the warp take part in the sums, also those whose bag has no such ids.
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
  for (int at = lane * 8; at - lane * 8 < t.code_bytes; at += lanes * 8) {
    Words<8> codes[kRows];
    bad = read_rows<8>(t, row, at, codes, pair) && i < last;
    const int first = at * 8 / bits;
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
// The grid is that of pool_kernel. A group of lanes owns a bag, a lane per 8 bytes of codes, and
// takes four ids at a time, whose rows are all asked for before the first is used. The gradient of
// the bag is read 16 bytes at a time, once for four ids, from L1 but for the first time. Reads each
// row once. Ids outside every bag keep the zero that the caller wrote. Not yet measured.
template <int bits, typename Id>
__global__ void __launch_bounds__(kBlock, 2) weight_gradient_kernel(const PoolParams p) {
  const int64_t bags = p.bags.bags;
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) return;
    const Table& t = *found;
    const int lanes = lanes_for(t.code_bytes / 8), lane = threadIdx.x % lanes;
    const int64_t groups = kBlock / lanes, mine = threadIdx.x / lanes;
    // Whole warps go round together: every bound below is that of a warp.
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
  return p.bags.wide_ids ? launch(weight_gradient_kernel<bits, int64_t>, grid, stream, p)
                         : launch(weight_gradient_kernel<bits, int32_t>, grid, stream, p);
}

}  // namespace

cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& p, cudaStream_t stream) {
  const dim3 grid = bag_grid(p, groups_of(p, kBlock), 8);
  return p.set.bits == 8 ? weights_launch<8>(p, grid, stream) : weights_launch<4>(p, grid, stream);
}

}  // namespace lirank::gpu
