// Row-wise quantized tables on the GPU. Layout: csrc/quantized_embedding_layout.h.
#include "quantized_embedding.cuh"

#include "async_copy.cuh"
#include "codes.cuh"

namespace lirank::gpu {
namespace {

struct Table {
  const uint8_t *codes, *pairs;
  int64_t rows, column;
  int dim, code_bytes, code_stride, pair_stride;
  int readable;  // code_bytes, but 0 where there are no rows: then `codes` and `pairs` are zeros
  bool wide;     // 16 bytes a load, and results on 16 bytes
};

__device__ uint4 no_row;  // what is read in place of rows of a table that has none

__device__ Table table_at(const PoolParams& p, const uint8_t* base, int64_t rows, int64_t dim,
                          int64_t column) {
  const rowwise::Layout l = rowwise::layout(dim, p.set.bits);
  const int64_t each = p.element == Element::float32 ? 4 : 2;
  const int64_t places = (int64_t)base | (int64_t)p.out | column * each | p.set.width * each;
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
          l.apart && places % 16 == 0};
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
      table = table_at(p, s.packed, s.one_rows, s.one_dim, 0);
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
      if (fits) table = table_at(p, base, s.rows[index], s.dims[index], column);
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

constexpr int kRows = 4;          // rows that a group of lanes asks for at once
constexpr int kPoolBlock = 128;   // threads
constexpr int kPoolResident = 5;  // blocks a multiprocessor: 28 KB each, 96 registers a thread

// Rows on their way, each thread's own part of them: those of four ids while four others are added.
struct Ring {
  uint4 codes[2][kRows][kPoolBlock];
  rowwise::Pair pairs[2][kRows][kPoolBlock];
  float weights[2][kRows][kPoolBlock];
};

// Asks for the rows of four ids; zeros come where an id is out of range, which is reported.
template <int bytes, typename Id>
__device__ __forceinline__ void ask_for_rows(const PoolParams& p, const Table& t, int64_t index,
                                             Ring& ring, int half, const Id (&row)[kRows],
                                             int64_t i, int64_t last, int at) {
  const bool mine = at < t.code_bytes;
  bool bad = false;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (i + k >= last) break;
    const int64_t r = row[k];
    const bool good = (uint64_t)r < (uint64_t)t.rows;
    bad = bad || !good;
    copy_async<bytes>(&ring.codes[half][k][threadIdx.x], t.codes + r * t.code_stride + at,
                      good && mine);
    copy_async<8>(&ring.pairs[half][k][threadIdx.x], t.pairs + r * t.pair_stride, good);
    if (p.bags.weights)
      copy_async<4>(&ring.weights[half][k][threadIdx.x], (const float*)p.bags.weights + i + k,
                    true);
  }
  commit_copies();
  if (bad && at == 0) report_rows<Id>(p, t, index, i, i + kRows < last ? i + kRows : last);
}

// Pooled rows of `left` items from `item` on, whose ids lie one behind the other; the columns of
// one lane from byte `at` of the row on.
template <int bits, int bytes, typename Id, typename Out>
__device__ __forceinline__ void pool_run(const PoolParams& p, const Table& t, int64_t index,
                                         Ring& ring, int64_t item, int left, Range ids, int at) {
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
    if (bytes == 16) {  // rows of whole 64 columns, results on 16 bytes
      if (first < t.dim) store_whole<kColumns>(out, total);
    } else if (first < t.dim) {
      store_columns<kColumns>(out, total, t.dim - first);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = 0;
    mids = 0;
    ++item;
    end = --left > 0 ? start_of(p.bags, item + 1) : -1;
  };
  Id next[kRows];
  read_ids(p.bags, ids.begin, ids.end, next);
  ask_for_rows<bytes>(p, t, index, ring, 0, next, ids.begin, ids.end, at);
  read_ids(p.bags, ids.begin + kRows, ids.end, next);
  int half = 0;
#pragma unroll 1
  for (int64_t i = ids.begin; left > 0; half ^= 1) {
    ask_for_rows<bytes>(p, t, index, ring, half ^ 1, next, i + kRows, ids.end, at);
    read_ids(p.bags, i + 2 * kRows, ids.end, next);
    wait_for_copies<1>();
#pragma unroll 1
    for (int k = 0; k < kRows; ++k, ++i) {
      while (i == end) finish();
      if (left == 0) break;
      Words<bytes> codes;
      memcpy(&codes, &ring.codes[half][k][threadIdx.x], bytes);
      rowwise::Pair pair = ring.pairs[half][k][threadIdx.x];
      if (p.bags.weights) {
        const float w = ring.weights[half][k][threadIdx.x];
        pair = {__fmul_rn(pair.scale, w), __fmul_rn(pair.mid, w)};
      }
      mids = __fadd_rn(mids, pair.mid);
      add_codes<bits, bytes>(codes, pair.scale, total);
    }
  }
}

// Whether the offsets around `count` items from `item` on fit the ids; the lanes of a group share
// the work, all lanes of the warp take part.
__device__ inline bool items_fit(const Bags& b, int64_t item, int count, int lane, int lanes) {
  bool good = true;
  for (int k = lane; k < count && b.fixed < 0; k += lanes) {
    const int64_t begin = start_of(b, item + k), end = start_of(b, item + k + 1);
    good = good && begin >= 0 && end >= begin && end <= b.count && (item + k > 0 || begin == 0);
  }
  return __all_sync(kWarp, good);
}

template <int bits, int bytes, typename Id, typename Out>
__device__ void pool_table(const PoolParams& p, const Table& t, int64_t index, Ring& ring) {
  const int lanes = lanes_for((t.code_bytes + bytes - 1) / bytes);
  const int lane = threadIdx.x % lanes, groups = kPoolBlock / lanes;
  const int64_t bags = p.bags.bags, step = (int64_t)gridDim.x * groups * p.run;
  // Whole warps go round together, some groups in the end without a bag.
  for (int64_t base = (int64_t)blockIdx.x * groups * p.run; base < bags; base += step) {
    const int64_t bag = base + threadIdx.x / lanes * p.run;
    const int count = bag >= bags ? 0 : bag + p.run < bags ? p.run : (int)(bags - bag);
    const bool good = items_fit(p.bags, index * bags + bag, count, lane, lanes);
    for (int done = 0; done < count;) {  // one turn, but for bad offsets: then a turn a bag
      const int64_t item = index * bags + bag + done;
      const int each = good ? count : 1;
      const Range ids = good ? Range{start_of(p.bags, item), start_of(p.bags, item + count)}
                             : range_of(p.bags, item, p.errors, lane == 0);
      for (int from = 0; from < t.code_bytes; from += lanes * bytes)
        pool_run<bits, bytes, Id, Out>(p, t, index, ring, item, each, ids, from + lane * bytes);
      done += each;
    }
  }
}

template <typename Out>
__device__ void zero_all(const PoolParams& p) {
  const int64_t n = p.bags.bags * p.set.width;
  for (int64_t i = (int64_t)blockIdx.x * kPoolBlock + threadIdx.x; i < n;
       i += (int64_t)gridDim.x * kPoolBlock)
    put((Out*)p.out + i, 0.0f);
}

// quantized_embedding_bag(s): pooled rows of all tables in one launch.
//
// The grid is (blocks, tables), 128 threads a block, as many blocks as the device holds. A group of
// 1 to 32 lanes, the power of two that covers the row, owns a run of neighboring bags, 32 at most.
// The ids of a run lie one behind the other, and the group walks through them four at a time,
// whatever bags they belong to: results are written where a bag ends. Every lane asks for its 16
// bytes of codes (8-bit rows on whole cache lines) or 8, and for the pair, of the next four ids by
// asynchronous copies into its own place in shared memory, and for the four ids after those, before
// it adds the four that have arrived. What is on its way takes no registers, so that a
// multiprocessor holds 20 warps with up to eight rows a group on their way. The sums of a lane's
// columns stay in registers: pooled = sum scale * code + sum mid, in the order of the ids, so that
// results do not depend on grid or device.
//
// Bytes: code_bytes + 8 a row, an id each, the result once. DRAM moves sectors of 32 bytes: 160
// for the 136 of a 128-wide int8 row outside the cache. The floor on an H100 by its datasheet (3.35
// TB/s) for 1,048,570 rows of 160 bytes is 0.050 ms, of which L2 keeps what zipf 1.05 repeats.
// Instructions: 3 a code, 9.5 of 28.7 T lane-instructions a second at that rate.
//
// Assumes that rows and pairs start on 8 bytes (quantized_embedding_layout.h).
// Tried and dropped: one id after another, each checked and weighted before the next (0.128 ms for
// 52,428 bags of 20 on an H100; the weight's multiplication waits for a row before the next one is
// asked for); four rows in registers (0.093 ms; 127 registers, 16 warps a multiprocessor).
// Dropped on paper: one bag a warp (at D = 32 three of four lanes idle), ids by shuffle (a shuffle
// costs what a broadcast load from L1 does), descriptors of tables in a workspace (an allocation).
template <int bits, typename Id, typename Out>
__global__ void __launch_bounds__(kPoolBlock, kPoolResident) pool_kernel(const PoolParams p) {
  __shared__ Ring ring;
  for (int64_t index = blockIdx.y; index < p.set.tables; index += gridDim.y) {
    const Table* found = find_table(p, index);
    if (found == nullptr) {
      if (index == 0) zero_all<Out>(p);
      return;
    }
    const Table& t = *found;
    if (bits == 8 && t.wide)
      pool_table<bits, bits == 8 ? 16 : 8, Id, Out>(p, t, index, ring);
    else
      pool_table<bits, 8, Id, Out>(p, t, index, ring);
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
      return launch(pool_kernel<bits, Id, __half>, grid, stream, p, kPoolBlock);
    case Element::bfloat16:
      return launch(pool_kernel<bits, Id, __nv_bfloat16>, grid, stream, p, kPoolBlock);
    default:
      return launch(pool_kernel<bits, Id, float>, grid, stream, p, kPoolBlock);
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

// Groups of lanes that so many threads are, for a table of middling width.
int64_t groups_of(const PoolParams& p, int threads) {
  const int64_t dim = p.set.width / p.set.tables;
  const int64_t bytes = rowwise::layout(dim, p.set.bits).code_bytes;
  return threads / lanes_for(p.set.bits == 8 && bytes % 64 == 0 ? bytes / 16 : bytes / 8);
}

// Neighboring bags that a group takes at once: as many as leave each group on the device four runs,
// so that the first rows of a run, which are waited for, are few among all.
int run_of(const PoolParams& p) {
  const int64_t groups = kPoolResident * multiprocessors() * groups_of(p, kPoolBlock);
  const int64_t run = p.bags.bags * p.set.tables / (4 * groups);
  return (int)(run < 1 ? 1 : run < 32 ? run : 32);
}

// Each block finds its table once, so blocks are only as many as the device holds.
dim3 bag_grid(const PoolParams& p, int64_t bags_a_block, int64_t resident) {
  if (p.bags.bags == 0) return dim3(0);
  const int64_t tables = p.set.tables < 65535 ? p.set.tables : 65535;
  const int64_t most = (resident * multiprocessors() + tables - 1) / tables;
  return dim3(blocks_for(p.bags.bags, bags_a_block, most), (unsigned)tables);
}

}  // namespace

cudaError_t quantized_embedding_bags_launch(const PoolParams& params, cudaStream_t stream) {
  PoolParams p = params;
  p.run = run_of(p);
  const dim3 grid = bag_grid(p, groups_of(p, kPoolBlock) * p.run, kPoolResident);
  return p.set.bits == 8 ? pool_launch<8>(p, grid, stream) : pool_launch<4>(p, grid, stream);
}

cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& p, cudaStream_t stream) {
  const dim3 grid = bag_grid(p, groups_of(p, kBlock), 8);
  return p.set.bits == 8 ? weights_launch<8>(p, grid, stream) : weights_launch<4>(p, grid, stream);
}

}  // namespace lirank::gpu
