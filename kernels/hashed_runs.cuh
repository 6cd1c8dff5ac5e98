// What the kernels share that sum the gradients of sorted entries by runs of one row: see
// hashed_embedding_backward.cu.
#pragma once
#include "hashed_rows.cuh"

namespace lirank::gpu {

__device__ inline bool is_head(const RunsParams& p, int64_t i) {
  return i == 0 || p.sorted[i] != p.sorted[i - 1];
}

template <typename Sum>
__device__ inline Sum scale_of(const Bags& b, int64_t position, int64_t bag) {
  if (b.weights) return ((const Sum*)b.weights)[position];
  return b.mean ? (Sum)1 / (Sum)(b.start(bag + 1) - b.start(bag)) : (Sum)1;
}

constexpr int kPartsAhead = 8, kWarps = kBlock / 32;

// The columns of a row that a lane takes at a time: `columns` of them from `first` on, side by side
// if rows are aligned to so many elements (`packed`), else 32 apart. Loads and stores of a packed
// lane are one each, and those of a warp are whole lines either way.
template <int columns, bool packed>
struct Lane {
  static constexpr int64_t kStep = packed ? 1 : 32;
  static constexpr int64_t kBlockOfColumns = 32 * columns;

  static __device__ inline int64_t start() {
    return (int64_t)(threadIdx.x % 32) * (packed ? columns : 1);
  }

  template <typename E, typename Sum>
  static __device__ inline void load(const E* row, int64_t first, int64_t dim, bool wanted,
                                     Sum (&to)[columns]) {
    const E* at = row + first;
    if constexpr (packed) {
      Part<E> part{};
      if (wanted && first < dim) part = *(const Part<E>*)at;
#pragma unroll
      for (int c = 0; c < columns; ++c) to[c] = (Sum)widen(part.x[c]);
    } else {
#pragma unroll
      for (int c = 0; c < columns; ++c)
        to[c] = wanted && first + c * 32 < dim ? (Sum)widen(at[c * 32]) : (Sum)0;
    }
  }

  template <typename E, typename Sum>
  static __device__ inline void store(const Sum (&from)[columns], E* row, int64_t first,
                                      int64_t dim) {
    E* at = row + first;
    if constexpr (packed) {
      Part<E> part;
#pragma unroll
      for (int c = 0; c < columns; ++c) put(part.x + c, from[c]);
      if (first < dim) *(Part<E>*)at = part;
    } else {
#pragma unroll
      for (int c = 0; c < columns; ++c)
        if (first + c * 32 < dim) put(at + c * 32, from[c]);
    }
  }

  // Whether rows of `dim` elements from `base` on are aligned to a lane's columns.
  template <typename E>
  static bool fits(const void* base, int64_t dim) {
    return dim % columns == 0 && (uintptr_t)base % sizeof(Part<E>) == 0;
  }

 private:
  template <typename E>
  struct alignas(columns * sizeof(E)) Part {
    E x[columns];
  };
};

// Columns of a lane where the parts of runs are joined.
constexpr int kJoinColumns = 4;
using JoinLane = Lane<kJoinColumns, false>;

constexpr int kRunEntries = 4;  // whose gradients are asked for before the first is added

// What a lane keeps of the sorted entries of a chunk: those at its number and 32 further on.
template <typename Sum>
struct Entries {
  uint32_t row[2];
  int32_t bag[2];
  Sum scale[2];
  uint64_t heads;  // of all 64, a bit each: a row starts
};

template <typename Sum>
__device__ inline Entries<Sum> read_entries(const RunsParams& p, int64_t begin, int64_t end) {
  Entries<Sum> e;
  const int lane = threadIdx.x % 32;
  unsigned heads[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t i = begin + h * 32 + lane;
    e.row[h] = i < end ? p.sorted[i] & p.row_bits : 0;
    e.bag[h] = -1;
    e.scale[h] = 1;
    if (i < end) {
      const int64_t position = p.positions[i];
      e.bag[h] = p.bag_of[position];
      if (e.bag[h] >= 0) e.scale[h] = scale_of<Sum>(p.bags, position, e.bag[h]);
    }
    heads[h] = __ballot_sync(kWarp, i < end && is_head(p, i));
  }
  e.heads = (uint64_t)heads[1] << 32 | heads[0];
  return e;
}

// The row of the last entry of a chunk.
__device__ inline int64_t last_row(const RunsParams& p, int64_t chunk) {
  return p.sorted[chunk * kChunk + kChunk - 1] & p.row_bits;
}

// Chunks behind `chunk` that begin with `row`: sorted, so those that do come first.
__device__ inline int64_t chunks_behind(const RunsParams& p, int64_t chunk, uint32_t row) {
  const int lane = threadIdx.x % 32;
  for (int64_t next = chunk + 1;; next += 32) {
    const int64_t at = (next + lane) * kChunk;
    const unsigned same = __ballot_sync(kWarp, at < p.count && p.sorted[at] == row);
    if (same != kWarp) return next + __popc(same) - chunk - 1;
  }
}

// The first parts of the chunks from `from` to `to`, added in their order, eight asked for at once.
template <typename Sum>
__device__ inline void add_parts(const RunsParams& p, int64_t from, int64_t to, int64_t first,
                                 Sum (&total)[kJoinColumns]) {
#pragma unroll 1
  for (int64_t chunk = from; chunk < to; chunk += kPartsAhead) {
    Sum part[kPartsAhead][kJoinColumns];
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k)
      JoinLane::load((const Sum*)p.partials + (chunk + k) * 2 * p.dim, first, p.dim, chunk + k < to,
                     part[k]);
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k)
#pragma unroll
      for (int c = 0; c < kJoinColumns; ++c) total[c] += part[k][c];
  }
}

// Parts of a run that goes on behind `chunk`, of which there are `count` more, added in the order
// of the chunks. A warp adds few by itself. Of many, each warp of the block adds a stretch, and one
// warp the eight sums: an id that takes a tenth of a million has 1,600 parts in each table. The
// warp that has the sum of the columns from `first` on calls take(chunk, first, total), and
// finish(chunk) after the last.
template <typename Sum, typename Take, typename Finish>
__device__ inline void join_run(const RunsParams& p, int64_t chunk, int64_t count, bool together,
                                Sum (*shares)[32 * kJoinColumns], const Take& take,
                                const Finish& finish) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool ends = !together || warp == 0;
  for (int64_t first = lane; first - lane < p.dim; first += 32 * kJoinColumns) {
    Sum total[kJoinColumns] = {};
    if (together) {
      add_parts(p, chunk + 1 + warp * count / kWarps, chunk + 1 + (warp + 1) * count / kWarps,
                first, total);
#pragma unroll
      for (int c = 0; c < kJoinColumns; ++c) shares[warp][lane + c * 32] = total[c];
      __syncthreads();
    }
    if (ends) {
      JoinLane::load((const Sum*)p.partials + (chunk * 2 + 1) * p.dim, first, p.dim, true, total);
      if (!together) add_parts(p, chunk + 1, chunk + 1 + count, first, total);
      for (int w = 0; together && w < kWarps; ++w)
#pragma unroll
        for (int c = 0; c < kJoinColumns; ++c) total[c] += shares[w][lane + c * 32];
      take(chunk, first, total);
    }
    if (together) __syncthreads();
  }
  if (ends) finish(chunk);
}

// All runs that cross chunks; a block takes eight chunks, a warp looks at one.
template <typename Sum, typename Take, typename Finish>
__device__ inline void join_runs(const RunsParams& p, const Take& take, const Finish& finish) {
  constexpr int64_t kFew = 32;
  __shared__ Sum shares[kWarps][32 * kJoinColumns];
  __shared__ int64_t many[kWarps];  // parts of each warp's run, if the block has to add them
  const int warp = threadIdx.x / 32;
  for (int64_t base = (int64_t)blockIdx.x * kWarps; base * kChunk < p.count;
       base += (int64_t)gridDim.x * kWarps) {
    const int64_t chunk = base + warp, begin = chunk * kChunk, next = begin + kChunk;
    int64_t count = 0;
    if (next < p.count) {
      const uint32_t row = p.sorted[next - 1];
      const bool was_before = p.sorted[begin] == row && !is_head(p, begin);
      if (p.sorted[next] == row && !was_before) count = chunks_behind(p, chunk, row);
    }
    if (count > 0 && count <= kFew) join_run<Sum>(p, chunk, count, false, shares, take, finish);
    if (threadIdx.x % 32 == 0) many[warp] = count > kFew ? count : 0;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w)
      if (many[w] > 0) join_run<Sum>(p, base + w, many[w], true, shares, take, finish);
    __syncthreads();
  }
}

// Whether lanes of so many columns are packed in all that a kernel reads and writes.
template <typename E, int columns>
bool packs(const RunsParams& p) {
  using Columns = Lane<columns, true>;
  return Columns::template fits<E>(p.grad, p.dim) && Columns::template fits<E>(p.out, p.dim) &&
         Columns::template fits<SumOf<E>>(p.partials, p.dim);
}

}  // namespace lirank::gpu
