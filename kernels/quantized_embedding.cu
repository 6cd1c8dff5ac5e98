// Row-wise quantized tables on the GPU. Layout: csrc/quantized_embedding_layout.h.
#include "quantized_embedding.cuh"

#include "codes.cuh"

namespace lirank::gpu {
namespace {

struct Table {
  const uint8_t *codes, *pairs;
  int64_t rows, dim, column, code_bytes, code_stride, pair_stride;
  bool wide;  // 16 bytes a load
};

__device__ Table table_at(const uint8_t* base, int64_t rows, int64_t dim, int64_t column,
                          int bits) {
  const rowwise::Layout l = rowwise::layout(dim, bits);
  const uint8_t* pairs = base + rowwise::first_pair(l, rows);
  return {base,          pairs,         rows,
          dim,           column,        l.code_bytes,
          l.code_stride, l.pair_stride, l.apart && (uintptr_t)base % 16 == 0};
}

// Where table `index` lies, found by one warp: the tables before it are summed, 32 at a time, so
// that nothing has to be prepared on the host or in memory. Two loads a lane for 32 tables, under
// 1 us, once a block. Null where rows and dims do not fit the tensor; then no table is used.
// The answer stays in shared memory: copies of it in registers made the pooling spill.
__device__ const Table* find_table(const PoolParams& p, int64_t index) {
  __shared__ Table table;
  __shared__ bool fits;
  const TableSet& s = p.set;
  __syncthreads();
  if (s.rows == nullptr) {
    if (threadIdx.x == 0) {
      table = table_at(s.packed, s.one_rows, s.one_dim, 0, s.bits);
      fits = true;
    }
  } else if (threadIdx.x < 32) {
    int64_t tight = 0, aligned = 0, column = 0, all_tight = 0, all_aligned = 0, width = 0, bad = 0;
    for (int64_t t = threadIdx.x; t < s.tables; t += 32) {
      const int64_t rows = s.rows[t], dim = s.dims[t];
      const int64_t row_bytes = dim > 0 ? rowwise::layout(dim, s.bits).row_bytes : 8;
      if (dim <= 0 || rows < 0 || dim > s.width || rows > s.bytes / row_bytes) {
        bad = 1;
        continue;
      }
      const int64_t bytes = rows * row_bytes, whole = (bytes + 63) / 64 * 64;
      all_tight += bytes, all_aligned += whole, width += dim;
      if (t < index) tight += bytes, aligned += whole, column += dim;
    }
    tight = warp_sum(tight), aligned = warp_sum(aligned), column = warp_sum(column);
    all_tight = warp_sum(all_tight), all_aligned = warp_sum(all_aligned);
    width = warp_sum(width), bad = warp_sum(bad);
    if (threadIdx.x == 0) {
      fits = !bad && width == s.width && (s.bytes == all_tight || s.bytes == all_aligned);
      const uint8_t* base = s.packed + (s.bytes == all_aligned ? aligned : tight);
      if (fits) table = table_at(base, s.rows[index], s.dims[index], column, s.bits);
      if (!fits && blockIdx.x == 0 && index == 0)
        report(p.errors, Wrong::tables, width, s.width, all_tight, s.bytes);
    }
  }
  __syncthreads();
  return fits ? &table : nullptr;
}

__device__ float weight_at(const Bags& b, int64_t i) {
  return b.weights ? ((const float*)b.weights)[i] : 1.0f;
}

// Codes and pair of the row of id i, weighted; zeros, and a count, where there is no such row.
template <int bytes>
__device__ __forceinline__ void load_row(const PoolParams& p, const Table& t, int64_t index,
                                         int64_t i, int64_t at, bool tell, Words<bytes>& codes,
                                         rowwise::Pair& pair) {
  const int64_t row = id_at(p.bags, i);
  codes = {};
  pair = {0, 0};
  if ((uint64_t)row >= (uint64_t)t.rows) {
    if (tell) report(p.errors, Wrong::index, i, row, index, t.rows);
    return;
  }
  pair = load_pair(t.pairs + row * t.pair_stride);
  if (at < t.code_bytes) codes = load_words(t.codes + row * t.code_stride + at, &codes);
  const float w = weight_at(p.bags, i);
  if (p.bags.weights) pair = {__fmul_rn(pair.scale, w), __fmul_rn(pair.mid, w)};
}

// One bag, the columns of one lane from byte `at` of the row on.
template <int bits, int bytes, typename Out>
__device__ __forceinline__ void pool_columns(const PoolParams& p, const Table& t, int64_t index,
                                             Range ids, int64_t at, bool tell, Out* out) {
  constexpr int kColumns = bytes * 8 / bits, kRows = 4;
  float total[kColumns] = {}, mids = 0;
  int64_t i = ids.begin;
  for (; i + kRows <= ids.end; i += kRows) {
    Words<bytes> codes[kRows];
    rowwise::Pair pair[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      load_row<bytes>(p, t, index, i + k, at, tell, codes[k], pair[k]);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      mids = __fadd_rn(mids, pair[k].mid);
      add_codes<bits, bytes>(codes[k], pair[k].scale, total);
    }
  }
  for (; i < ids.end; ++i) {
    Words<bytes> codes;
    rowwise::Pair pair;
    load_row<bytes>(p, t, index, i, at, tell, codes, pair);
    mids = __fadd_rn(mids, pair.mid);
    add_codes<bits, bytes>(codes, pair.scale, total);
  }
  const float d = p.bags.mean && ids.end > ids.begin ? 1.0f / (float)(ids.end - ids.begin) : 1.0f;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) total[c] = (total[c] + mids) * d;
  const int64_t first = at * 8 / bits;
  if (first < t.dim) store_columns<kColumns>(out + first, total, t.dim - first);
}

template <int bits, int bytes, typename Out>
__device__ void pool_table(const PoolParams& p, const Table& t, int64_t index) {
  const int lanes = lanes_for((t.code_bytes + bytes - 1) / bytes);
  const int lane = threadIdx.x % lanes, groups = kBlock / lanes;
  const int64_t bags = p.bags.bags;
  for (int64_t bag = (int64_t)blockIdx.x * groups + threadIdx.x / lanes; bag < bags;
       bag += (int64_t)gridDim.x * groups) {
    const Range ids = range_of(p.bags, index * bags + bag, p.errors, lane == 0);
    Out* out = (Out*)p.out + bag * p.set.width + t.column;
    for (int64_t base = 0; base < t.code_bytes; base += lanes * bytes)
      pool_columns<bits, bytes>(p, t, index, ids, base + lane * bytes, base == 0 && lane == 0, out);
  }
}

template <typename Out>
__device__ void zero_all(const PoolParams& p) {
  const int64_t n = p.bags.bags * p.set.width;
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock)
    put((Out*)p.out + i, 0.0f);
}

// quantized_embedding_bag(s): pooled rows of all tables in one launch.
//
// Grid (bags, tables), 256 threads. A group of 1 to 32 lanes, the power of two that covers the
// row, owns a bag: eight bags a warp at 32 int8 columns. Every lane loads 16 bytes of codes (rows
// on whole cache lines) or 8, of four ids at once, so that a warp has up to 2 KB in flight, and
// keeps the sums of its columns in registers: pooled = sum scale * code + sum mid, in the order of
// the ids, so that results do not depend on grid or device. The ids and the pair of a row are read
// by all lanes of its group at one address.
//
// Bytes: code_bytes + 8 a row, an id each, the result once. DRAM moves sectors of 32 bytes: 160
// for the 136 of a 128-wide int8 row outside the cache. Floor on an H100 by its datasheet (3.35
// TB/s): 1,048,570 rows of 160 bytes 0.050 ms, of which L2 keeps what zipf 1.05 repeats.
// Instructions: 3 a code, 9.5 of 28.7 T lane-instructions a second at that rate. Not yet measured.
//
// Assumes rows and pairs on 8 bytes (quantized_embedding_layout.h) and fewer than 65,536 blocks of
// tables at a time. Dropped on paper: one bag a warp (at D = 32 three of four lanes idle), ids by
// shuffle (a shuffle costs what a broadcast load from L1 does), descriptors of tables in a
// workspace (an allocation).
template <int bits, typename Out>
__global__ void __launch_bounds__(kBlock, 2) pool_kernel(const PoolParams p) {
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) {
      if (index == 0) zero_all<Out>(p);
      return;
    }
    const Table& t = *found;
    if (t.wide)
      pool_table<bits, 16, Out>(p, t, index);
    else
      pool_table<bits, 8, Out>(p, t, index);
  }
}

// d out / d per_sample_weights: <grad of the bag, dequantized row>, one warp a bag, a lane per 8
// bytes of codes. Reads each row once and the gradient of a bag once an id, from L1. Ids outside
// every bag keep the zero that the caller wrote.
template <int bits>
__global__ void __launch_bounds__(kBlock) weight_gradient_kernel(const PoolParams p) {
  constexpr int kColumns = 64 / bits;
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32), bags = p.bags.bags;
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) return;
    const Table& t = *found;
    for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < bags;
         bag += warps) {
      const Range ids = range_of(p.bags, index * bags + bag, p.errors, lane == 0);
      const float* grad = p.grad + bag * p.set.width + t.column;
      for (int64_t i = ids.begin; i < ids.end; ++i) {
        float with_codes = 0, alone = 0;
        rowwise::Pair pair = {0, 0};
        for (int64_t at = lane * 8; at < t.code_bytes; at += 32 * 8) {
          Words<8> words;
          rowwise::Pair mine;
          load_row<8>(p, t, index, i, at, at == 0, words, mine);
          pair = mine;
          float code[kColumns] = {};
          add_codes<bits, 8>(words, 1.0f, code);
          const int64_t first = at * 8 / bits;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const float g = first + c < t.dim ? grad[first + c] : 0.0f;
            with_codes = __fmaf_rn(g, code[c], with_codes);
            alone += g;
          }
        }
        const float dot = warp_sum(with_codes), sum = warp_sum(alone);
        if (lane == 0) ((float*)p.out)[i] = pair.scale * dot + pair.mid * sum;
      }
    }
  }
}

template <int bits>
cudaError_t pool_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  switch (p.element) {
    case Element::float16:
      return launch(pool_kernel<bits, __half>, grid, stream, p);
    case Element::bfloat16:
      return launch(pool_kernel<bits, __nv_bfloat16>, grid, stream, p);
    default:
      return launch(pool_kernel<bits, float>, grid, stream, p);
  }
}

// ---- rows ------------------------------------------------------------------------------

__device__ inline int64_t first_row() { return ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; }
__device__ inline int64_t row_step() { return (int64_t)gridDim.x * (kBlock / 32); }

__device__ inline void tell_row(const RowsParams& p, Wrong kind, int64_t row) {
  atomicMin(p.bad, (unsigned long long)row);
  if (p.errors) report(p.errors, kind, row, 0, 0, p.rows);
}

// One warp a row, read twice (the second time from L1): 4 bytes a value in, 1 out, copy bandwidth.
// The written order of operations with every step rounded: the bits are those of the CPU.
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
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, d));
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, d));
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

// One warp a row, a lane a column: 1 byte a value in, 4 out.
__global__ void __launch_bounds__(kBlock) dequantize_kernel(const RowsParams p) {
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const float scale = p.scale[row], mid = p.mid[row];
    for (int64_t c = threadIdx.x % 32; c < p.dim; c += 32)
      p.out[row * p.dim + c] = rowwise::dequantize(p.codes[row * p.dim + c], scale, mid);
  }
}

// One warp a row, a lane a stored byte, padding included. Runs once a table.
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

// The inverse, a lane a column.
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

dim3 bag_grid(const PoolParams& p, int64_t each) {
  if (p.bags.bags == 0) return dim3(0);
  const int64_t tables = p.set.tables < 65535 ? p.set.tables : 65535;
  return dim3(blocks_for(p.bags.bags, each, (1 << 20) / tables + 1), (unsigned)tables);
}

}  // namespace

cudaError_t quantized_embedding_bags_launch(const PoolParams& p, cudaStream_t stream) {
  const dim3 grid = bag_grid(p, 32);
  return p.set.bits == 8 ? pool_launch<8>(p, grid, stream) : pool_launch<4>(p, grid, stream);
}

cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& p, cudaStream_t stream) {
  const dim3 grid = bag_grid(p, kBlock / 32);
  return p.set.bits == 8 ? launch(weight_gradient_kernel<8>, grid, stream, p)
                         : launch(weight_gradient_kernel<4>, grid, stream, p);
}

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
