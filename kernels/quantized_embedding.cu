// Row-wise quantized tables on the GPU. Layout: csrc/quantized_embedding_layout.h.
#include "quantized_embedding.cuh"

#include "codes.cuh"

namespace lirank::gpu {
namespace {

struct Table {
  const uint8_t *codes, *pairs;
  int64_t rows, column;
  int dim, code_bytes, code_stride, pair_stride;
  int readable;  // code_bytes, but 0 where there are no rows: then `codes` and `pairs` are zeros
  bool wide;     // 16 bytes a load
};

__device__ uint4 no_row;  // what is read in place of rows of a table that has none

__device__ Table table_at(const uint8_t* base, int64_t rows, int64_t dim, int64_t column,
                          int bits) {
  const rowwise::Layout l = rowwise::layout(dim, bits);
  const bool none = rows == 0;
  const uint8_t* nothing = (const uint8_t*)&no_row;
  return {none ? nothing : base,
          none ? nothing : base + rowwise::first_pair(l, rows),
          rows,
          column,
          (int)dim,
          (int)l.code_bytes,
          none ? 0 : (int)l.code_stride,
          none ? 0 : (int)l.pair_stride,
          none ? 0 : (int)l.code_bytes,
          l.apart && (uintptr_t)base % 16 == 0};
}

// Where table `index` lies, found by one warp: the tables before it are summed, 32 at a time, so
// that nothing has to be prepared on the host or in memory. About 740 instructions and two
// barriers, once a block and table: blocks are as many as the device holds a few times over, and
// stride over the bags. Null where rows and dims do not fit the tensor; then no table is used.
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
#pragma unroll 1
    for (int64_t t = threadIdx.x; t < s.tables; t += 32) {
      const int64_t rows = s.rows[t], dim = s.dims[t];
      const int64_t row_bytes = dim > 0 ? rowwise::layout(dim, s.bits).row_bytes : 8;
      if (dim <= 0 || dim > kWidest || rows < 0 || dim > s.width || rows > s.bytes / row_bytes) {
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

// Reads the ids once more, so that nobody has to keep them in registers for this.
template <typename Id>
__device__ __forceinline__ void report_rows(const PoolParams& p, const Table& t, int64_t index,
                                            int64_t i, int64_t last) {
#pragma unroll 1
  for (; i < last; ++i) {
    const int64_t row = ((const Id*)p.bags.ids)[i];
    if ((uint64_t)row >= (uint64_t)t.rows) report(p.errors, Wrong::index, i, row, index, t.rows);
  }
}

constexpr int kRows = 4;      // rows that a group of lanes has in flight
constexpr int kResident = 2;  // blocks a multiprocessor

// Pooled rows of `left` items from `item` on, whose ids lie one behind the other; the columns of
// one lane from byte `at` of the row on.
template <int bits, int bytes, typename Id, typename Out>
__device__ __forceinline__ void pool_run(const PoolParams& p, const Table& t, int64_t index,
                                         int64_t item, int left, Range ids, int at) {
  constexpr int kColumns = bytes * 8 / bits;
  float total[kColumns] = {}, mids = 0;
  int64_t end = left > 1 ? start_of(p.bags, item + 1) : ids.end;
  const auto finish = [&] {
    float d = 1.0f;
    if (p.bags.mean) {
      const int64_t count = end - start_of(p.bags, item);
      d = count > 0 ? 1.0f / (float)count : 1.0f;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = (total[c] + mids) * d;
    const int first = at * 8 / bits;
    Out* out = (Out*)p.out + (item - index * p.bags.bags) * p.set.width + t.column + first;
    if (first < t.dim) store_columns<kColumns>(out, total, t.dim - first);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = 0;
    mids = 0;
    ++item;
    end = --left > 0 ? start_of(p.bags, item + 1) : -1;
  };
  Id next[kRows];
  read_ids(p.bags, ids.begin, ids.end, next);
#pragma unroll 1
  for (int64_t i = ids.begin; left > 0; i += kRows) {
    Id row[kRows];
    Words<bytes> codes[kRows];
    rowwise::Pair pair[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) row[k] = next[k];
    const bool bad = read_rows<bytes>(t, row, at, codes, pair) && i < ids.end;
    read_ids(p.bags, i + kRows, ids.end, next);
    if (bad && at == 0) report_rows<Id>(p, t, index, i, i + kRows < ids.end ? i + kRows : ids.end);
    if (p.bags.weights) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const float w = i + k < ids.end ? __ldg((const float*)p.bags.weights + i + k) : 0.0f;
        pair[k] = {__fmul_rn(pair[k].scale, w), __fmul_rn(pair[k].mid, w)};
      }
    }
    // One copy of `finish` for the five places where a bag may end: with one in each place the code
    // was larger than the cache of instructions.
    const auto add = [&](int k) {
    // Codes are widened here and not above the switch, where four rows of floats would spill.
#pragma unroll
      for (int w = 0; w < bytes / 4; ++w) asm volatile("" : "+r"(codes[k].w[w]));
      mids = __fadd_rn(mids, pair[k].mid);
      add_codes<bits, bytes>(codes[k], pair[k].scale, total);
    };
    for (int k = 0;; finish()) {
      switch (k) {
        case 0:
          if (i == end) break;
          add(0);
          [[fallthrough]];
        case 1:
          if (i + (k = 1) == end) break;
          add(1);
          [[fallthrough]];
        case 2:
          if (i + (k = 2) == end) break;
          add(2);
          [[fallthrough]];
        case 3:
          if (i + (k = 3) == end) break;
          add(3);
          [[fallthrough]];
        case 4:
          if (i + (k = 4) == end) break;
          k = 5;
      }
      if (k == 5) break;
    }
  }
}

// Whether the offsets around `count` items from `item` on fit the ids.
__device__ inline bool items_fit(const Bags& b, int64_t item, int64_t count) {
  if (b.fixed >= 0) return true;
  int64_t before = start_of(b, item);
  bool good = before >= 0 && (item > 0 || before == 0);
#pragma unroll 4
  for (int64_t k = 1; k <= count; ++k) {
    const int64_t start = start_of(b, item + k);
    good = good && start >= before;
    before = start;
  }
  return good && before <= b.count;
}

template <int bits, int bytes, typename Id, typename Out>
__device__ void pool_table(const PoolParams& p, const Table& t, int64_t index) {
  const int lanes = lanes_for((t.code_bytes + bytes - 1) / bytes);
  const int lane = threadIdx.x % lanes, groups = kBlock / lanes;
  const int64_t bags = p.bags.bags;
  for (int64_t bag = ((int64_t)blockIdx.x * groups + threadIdx.x / lanes) * p.run; bag < bags;
       bag += (int64_t)gridDim.x * groups * p.run) {
    const int count = bag + p.run < bags ? p.run : (int)(bags - bag);
    const bool good = items_fit(p.bags, index * bags + bag, count);
    for (int done = 0; done < count;) {  // one turn, but for bad offsets: then a turn a bag
      const int64_t item = index * bags + bag + done;
      const int each = good ? count : 1;
      const Range ids = good ? Range{start_of(p.bags, item), start_of(p.bags, item + count)}
                             : range_of(p.bags, item, p.errors, lane == 0);
      for (int base = 0; base < t.code_bytes; base += lanes * bytes)
        pool_run<bits, bytes, Id, Out>(p, t, index, item, each, ids, base + lane * bytes);
      done += each;
    }
  }
}

template <typename Out>
__device__ void zero_all(const PoolParams& p) {
  const int64_t n = p.bags.bags * p.set.width;
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < n;
       i += (int64_t)gridDim.x * kBlock)
    put((Out*)p.out + i, 0.0f);
}

// quantized_embedding_bag(s): pooled rows of all tables in one launch.
//
// The grid is (blocks, tables), 256 threads a block, as many blocks as the device holds four times.
// A group of 1 to 32 lanes, the power of two that covers the row, owns a run of 1 to 8 neighboring
// bags: 8 where bags hold one or two ids, so that the offsets and the ids of many are asked for
// together. The ids of a run lie one behind the other, and the group walks through them four at a
// time, whatever bags they belong to. Every lane asks for 16 bytes of codes (8-bit rows
// on whole cache lines) or 8, of four ids, and for their pairs and the next four ids, before it
// uses the first; results are written where a bag ends. Ids are checked and reported after the
// loads are on their way. The sums of a lane's columns stay in registers: pooled = sum scale * code
// + sum mid, in the order of the ids, so that results do not depend on grid or device.
//
// Bytes: code_bytes + 8 a row, an id each, the result once. DRAM moves sectors of 32 bytes: 160
// for the 136 of a 128-wide int8 row outside the cache. The floor on an H100 by its datasheet (3.35
// TB/s) for 1,048,570 rows of 160 bytes is 0.050 ms, of which L2 keeps what zipf 1.05 repeats.
// Instructions: 3 a code, 9.5 of 28.7 T lane-instructions a second at that rate. Not yet measured.
//
// Assumes that rows and pairs start on 8 bytes (quantized_embedding_layout.h).
// Tried in SASS and dropped: one id after another, each checked and weighted before the next (the
// weight's multiplication waits for a row before the next one is asked for, one row in flight).
// 16 bytes of 4-bit codes a lane (32 sums a lane spill).
// Dropped on paper: one bag a warp (at D = 32 three of four lanes idle), ids by shuffle (a shuffle
// costs what a broadcast load from L1 does), descriptors of tables in a workspace (an allocation).
template <int bits, typename Id, typename Out>
__global__ void __launch_bounds__(kBlock, kResident) pool_kernel(const PoolParams p) {
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) {
      if (index == 0) zero_all<Out>(p);
      return;
    }
    const Table& t = *found;
    if (bits == 8 && t.wide)
      pool_table<bits, bits == 8 ? 16 : 8, Id, Out>(p, t, index);
    else
      pool_table<bits, 8, Id, Out>(p, t, index);
  }
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

template <int bits, typename Id>
cudaError_t pool_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  switch (p.element) {
    case Element::float16:
      return launch(pool_kernel<bits, Id, __half>, grid, stream, p);
    case Element::bfloat16:
      return launch(pool_kernel<bits, Id, __nv_bfloat16>, grid, stream, p);
    default:
      return launch(pool_kernel<bits, Id, float>, grid, stream, p);
  }
}

template <int bits>
cudaError_t pool_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  return p.bags.wide_ids ? pool_launch<bits, int64_t>(p, grid, stream)
                         : pool_launch<bits, int32_t>(p, grid, stream);
}

template <int bits>
cudaError_t weights_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  return p.bags.wide_ids ? launch(weight_gradient_kernel<bits, int64_t>, grid, stream, p)
                         : launch(weight_gradient_kernel<bits, int32_t>, grid, stream, p);
}

// Groups of lanes that a block has for a table of middling width.
int64_t groups_of(const PoolParams& p) {
  const int64_t dim = p.set.width / p.set.tables,
                bytes = rowwise::layout(dim, p.set.bits).code_bytes;
  return kBlock / lanes_for(p.set.bits == 8 && bytes % 64 == 0 ? bytes / 16 : bytes / 8);
}

// Neighboring bags that a group takes at once: many where bags hold few ids, if the device is full
// even so.
int run_of(const PoolParams& p) {
  const int64_t items = p.bags.bags * p.set.tables, ids = p.bags.count;
  int run = ids <= 2 * items ? 8 : ids <= 4 * items ? 4 : ids <= 8 * items ? 2 : 1;
  while (run > 1 && items / run < 2 * multiprocessors() * groups_of(p)) run /= 2;
  return run;
}

// Each block finds its table once, so blocks are only as many as keep the device busy.
dim3 bag_grid(const PoolParams& p) {
  if (p.bags.bags == 0) return dim3(0);
  const int64_t tables = p.set.tables < 65535 ? p.set.tables : 65535;
  const int64_t most = (8 * multiprocessors() + tables - 1) / tables;
  return dim3(blocks_for(p.bags.bags, groups_of(p) * p.run, most), (unsigned)tables);
}

}  // namespace

cudaError_t quantized_embedding_bags_launch(const PoolParams& params, cudaStream_t stream) {
  PoolParams p = params;
  p.run = run_of(p);
  return p.set.bits == 8 ? pool_launch<8>(p, bag_grid(p), stream)
                         : pool_launch<4>(p, bag_grid(p), stream);
}

cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& p, cudaStream_t stream) {
  return p.set.bits == 8 ? weights_launch<8>(p, bag_grid(p), stream)
                         : weights_launch<4>(p, bag_grid(p), stream);
}

}  // namespace lirank::gpu
