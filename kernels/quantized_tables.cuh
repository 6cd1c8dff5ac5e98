// Helpers of look-ups in quantized tables: the place of a table, loads of rows, and the grid.
#pragma once
#include "codes.cuh"
#include "quantized_embedding.cuh"
#include "quantized_embedding_layout.h"

namespace lirank::gpu {

constexpr int kRows = 4;  // rows that a group of lanes has in flight

struct Table {
  const uint8_t *codes, *pairs;
  int64_t rows, dim, column, code_bytes, code_stride, pair_stride;
  bool wide;  // 16 bytes a load
};

__device__ inline Table table_at(const uint8_t* base, int64_t rows, int64_t dim, int64_t column,
                                 int bits) {
  const rowwise::Layout l = rowwise::layout(dim, bits);
  const uint8_t* pairs = base + rowwise::first_pair(l, rows);
  return {base,          pairs,         rows,
          dim,           column,        l.code_bytes,
          l.code_stride, l.pair_stride, l.apart && (uintptr_t)base % 16 == 0};
}

// Finds table `index`. One warp sums the sizes of the tables before it, 32 at a time, so nothing
// has to be prepared on the host or in memory. That takes about 740 instructions and two barriers,
// once per block and table. There are only a few times as many blocks as the device can hold, which
// stride over the bags. The result is null if rows and dims do not match the tensor, and then no
// table is used. The result stays in shared memory, because copies of it in registers made the
// pooling spill.
__device__ inline const Table* find_table(const PoolParams& p, int64_t index) {
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

// The ids of consecutive rows, with -1 from `last` on.
template <typename Id, int rows>
__device__ __forceinline__ void read_ids(const Bags& b, int64_t i, int64_t last, Id (&row)[rows]) {
#pragma unroll
  for (int k = 0; k < rows; ++k) row[k] = i + k < last ? __ldg((const Id*)b.ids + i + k) : (Id)-1;
}

// Loads the codes and pairs of several rows before the first is used. A missing row gives zeros.
// True if a row was missing.
template <int bytes, typename Id, int rows>
__device__ __forceinline__ bool read_rows(const Table& t, const Id (&row)[rows], int64_t at,
                                          Words<bytes> (&codes)[rows],
                                          rowwise::Pair (&pair)[rows]) {
  bool bad = false;
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    const int64_t r = row[k];
    const bool good = (uint64_t)r < (uint64_t)t.rows;
    bad = bad || !good;
    codes[k] = {};
    pair[k] = {0, 0};
    if (good) pair[k] = load_pair(t.pairs + r * t.pair_stride);
    if (good && at < t.code_bytes) codes[k] = load_words(t.codes + r * t.code_stride + at, codes);
  }
  return bad;
}

// Reads the ids again, so that callers do not have to keep them in registers for this.
template <typename Id>
__device__ __forceinline__ void report_rows(const PoolParams& p, const Table& t, int64_t index,
                                            int64_t i, int64_t last) {
#pragma unroll 1
  for (; i < last; ++i) {
    const int64_t row = ((const Id*)p.bags.ids)[i];
    if ((uint64_t)row >= (uint64_t)t.rows) report(p.errors, Wrong::index, i, row, index, t.rows);
  }
}

// Number of groups of lanes in a block, for a table of average width.
inline int64_t groups_of(const PoolParams& p) {
  const int64_t dim = p.set.width / p.set.tables,
                bytes = rowwise::layout(dim, p.set.bits).code_bytes;
  return kBlock / lanes_for(p.set.bits == 8 && bytes % 64 == 0 ? bytes / 16 : bytes / 8);
}

// Each block finds its table once, so there are only as many blocks as keep the device busy.
inline dim3 bag_grid(const PoolParams& p) {
  if (p.bags.bag_count == 0) return dim3(0);
  const int64_t tables = p.set.tables < 65535 ? p.set.tables : 65535;
  const int64_t most = (8 * multiprocessors() + tables - 1) / tables;
  return dim3(blocks_for(p.bags.bag_count, groups_of(p) * p.run, most), (unsigned)tables);
}

}  // namespace lirank::gpu
