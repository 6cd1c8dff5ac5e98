// What look-ups in quantized tables share: where a table lies, bad ids, and the grid.
#pragma once
#include "launch.cuh"
#include "quantized_embedding.cuh"
#include "quantized_embedding_layout.h"

namespace lirank::gpu {

constexpr int kRows = 4;  // rows that a group of lanes asks for at once

struct Table {
  const uint8_t *codes, *pairs;
  int64_t rows, column;
  int dim, code_bytes, code_stride, pair_stride;
  int readable;  // code_bytes, but 0 where there are no rows: then `codes` and `pairs` are zeros
  bool wide;     // 16 bytes a load, and results on 16 bytes
};

static __device__ uint4 no_row;  // what is read in place of rows of a table that has none

__device__ inline Table table_at(const PoolParams& p, const uint8_t* base, int64_t rows,
                                 int64_t dim, int64_t column) {
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
__device__ inline const Table* find_table(const PoolParams& p, int64_t index) {
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

// Groups of lanes that so many threads are, for a table of middling width.
inline int64_t groups_of(const PoolParams& p, int threads) {
  const int64_t dim = p.set.width / p.set.tables;
  const int64_t bytes = rowwise::layout(dim, p.set.bits).code_bytes;
  return threads / lanes_for(p.set.bits == 8 && bytes % 64 == 0 ? bytes / 16 : bytes / 8);
}

// Each block finds its table once, so blocks are only as many as the device holds.
inline dim3 bag_grid(const PoolParams& p, int64_t bags_a_block, int64_t resident) {
  if (p.bags.bags == 0) return dim3(0);
  const int64_t tables = p.set.tables < 65535 ? p.set.tables : 65535;
  const int64_t most = (resident * multiprocessors() + tables - 1) / tables;
  return dim3(blocks_for(p.bags.bags, bags_a_block, most), (unsigned)tables);
}

}  // namespace lirank::gpu
