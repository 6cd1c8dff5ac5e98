// Hashed embeddings on the GPU: hash, split, four gathers, pool; and their gradients.
#include "hashed_embedding.cuh"

#include <type_traits>

#include "codes.cuh"

namespace lirank::gpu {
namespace {

// ---- rows of an id ---------------------------------------------------------------------

struct FourRows {
  uint32_t row[4];  // tables have at most 2^32 rows
};

__device__ inline FourRows rows_of(const HashedSource& s, const Bags& b, int64_t i) {
  const uint64_t id = (uint64_t)((const int64_t*)b.ids)[i];
  const murmur::Rows r = murmur::rows_of(s.prehashed ? id : murmur::hash_id(id, s.seed), s.rule);
  return {{r.quotient_b, r.remainder_b, r.quotient_c, r.remainder_c}};
}

// Rows of the id at `i`, hashed by this lane or given; false where a given row is out of range.
__device__ inline bool read_rows(const HashedParams& p, int64_t i, bool tell, FourRows& r) {
  if (p.source.rows[0] == nullptr) {
    r = rows_of(p.source, p.bags, i);
    return true;
  }
  bool good = true;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t row = p.source.rows[k][i];
    good = good && (uint64_t)row < (uint64_t)p.tables.heights[k];
    r.row[k] = (uint32_t)row;
  }
  if (!good && tell) report(p.errors, Wrong::row, i, p.source.rows[0][i], 0, p.tables.heights[0]);
  return good;
}

// Rows that lane `lane` of this group has read. The whole warp takes part, so that the mask is a
// constant: with a mask in a register every shuffle is compiled twice, for lanes that diverge.
__device__ inline bool from_lane(const HashedParams& p, const FourRows& mine, bool good, int lane,
                                 int lanes, FourRows& r) {
#pragma unroll
  for (int k = 0; k < 4; ++k) r.row[k] = __shfl_sync(kWarp, mine.row[k], lane, lanes);
  return p.source.rows[0] == nullptr || __shfl_sync(kWarp, (int)good, lane, lanes);
}

// ---- readers: the columns of one lane, summed over the four rows -------------------------

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) {
  return __uint_as_float((uint32_t)__bfloat16_as_ushort(x) << 16);
}

__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// `columns` elements a lane: 16 bytes where rows lie on 16, else one element, lanes side by side.
// One element at a time reads tables of any strides, so that none has to be copied.
template <typename E, int columns>
struct FloatReader {
  using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;
  static constexpr int kColumns = columns, kBlocks = 3;  // blocks a multiprocessor
  struct alignas(sizeof(E) * columns) Part {
    E x[columns];
  };
  struct Loaded {
    Part part[4];
  };
  const HashedTables& t;
  __device__ explicit FloatReader(const HashedTables& t) : t(t) {}
  __host__ __device__ static int64_t parts(const HashedTables& t) {
    return (t.dim + columns - 1) / columns;
  }
  __device__ void load(const FourRows& r, int64_t first, Loaded& to) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const char* base = (const char*)t.base[k];
      if constexpr (columns > 1)
        to.part[k] = *(const Part*)(base + (uint64_t)r.row[k] * (uint32_t)t.row_bytes[k] +
                                    first * sizeof(E));
      else
        to.part[k] = *(const Part*)(base + r.row[k] * t.row_bytes[k] + first * t.column_bytes[k]);
    }
  }
  __device__ void sum(const Loaded& from, Sum (&x)[columns]) const {
    const Part(&part)[4] = from.part;
#pragma unroll
    for (int c = 0; c < columns; ++c)
      x[c] =
          (widen(part[0].x[c]) + widen(part[1].x[c])) + (widen(part[2].x[c]) + widen(part[3].x[c]));
  }
};

template <int bits>
struct PackedReader {
  using Sum = float;
  static constexpr int kColumns = 64 / bits, kBlocks = 2;
  struct Loaded {
    Words<8> codes[4];
    rowwise::Pair pair[4];
  };
  const HashedTables& t;
  rowwise::Layout l;
  __device__ explicit PackedReader(const HashedTables& t) : t(t), l(rowwise::layout(t.dim, bits)) {}
  __host__ __device__ static int64_t parts(const HashedTables& t) {
    return rowwise::layout(t.dim, bits).code_bytes / 8;
  }
  __device__ void load(const FourRows& r, int64_t first, Loaded& to) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint8_t* base = (const uint8_t*)t.base[k];
      const uint64_t row = r.row[k];
      to.codes[k] =
          load_words(base + row * (uint32_t)l.code_stride + first * bits / 8, to.codes + k);
      to.pair[k] =
          load_pair(base + rowwise::first_pair(l, t.heights[k]) + row * (uint32_t)l.pair_stride);
    }
  }
  __device__ void sum(const Loaded& from, float (&x)[kColumns]) const {
    const float mids =
        (from.pair[0].mid + from.pair[1].mid) + (from.pair[2].mid + from.pair[3].mid);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) x[c] = mids;
#pragma unroll
    for (int k = 0; k < 4; ++k) add_codes<bits, 8>(from.codes[k], from.pair[k].scale, x);
  }
};

// ---- forward ---------------------------------------------------------------------------

template <typename Sum>
__device__ Sum weight_of(const Bags& b, int64_t i) {
  return b.weights ? ((const Sum*)b.weights)[i] : (Sum)1;
}

constexpr int kAhead = 2;  // ids whose rows a group has in flight

// hashed_embedding_bag: one pass, no hash and no row is ever written.
//
// 256 threads a block, as many blocks as there is work. A group of 1 to 32 lanes covers a row, 16
// bytes a lane; each lane hashes one id and splits it, then the rows go round by shuffle, four of
// 32 bits, so that a hash (six 64-bit products, about 60 instructions) costs 60 / lanes per id and
// lane and hides behind the gathers. A group owns a bag, or, where every bag holds one id (`ones`),
// as many bags as it has lanes. The four rows of two ids are asked for before the first is used.
// The groups of a warp go round together, as often as the longest bag among them needs: lanes that
// are done ask for nothing. Sums stay in registers, in the order of the ids:
// out = sum w ((qb + rb) + (qc + rc)).
//
// Bytes: two quotient rows an id from DRAM (the remainder tables, 1,000 rows, stay in L2), 8 of
// id, the result once. The floor on an H100 by its datasheet (3.35 TB/s) at D = 128 in fp16 is 776
// bytes or 4.3 G ids/s for one id a bag, 533 bytes or 6.3 G ids/s pooled over 20. Not yet measured.
//
// Assumes rows on 16 bytes for the wide path (checked by the launcher), else one element a lane.
// Tried in SASS and dropped: a loop over ids unrolled by two (the loads of the second id stand
// behind the sums of the first), shuffles of 64-bit rows under a mask of the group.
// Dropped on paper: every lane hashing every id (100 instructions a warp and id, more than the
// gathers cost), hashes by a kernel of their own (16 bytes an id more, and a second launch), the
// two halves of the hash by shuffle (four divisions a lane cost more than two shuffles).
template <typename Reader, typename Out, bool ones>
__global__ void __launch_bounds__(kBlock, ones ? 2 : Reader::kBlocks)
    hashed_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int64_t parts = Reader::parts(p.tables), dim = p.tables.dim, bags = p.bags.bags;
  const int lanes = lanes_for(parts), lane = threadIdx.x % lanes, each = 32 / lanes;
  const int64_t items = ones ? (bags + lanes - 1) / lanes : bags;
  const int64_t warp = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32;
  for (int64_t of_warp = warp * each; of_warp < items;
       of_warp += (int64_t)gridDim.x * (kBlock / lanes)) {
    const int64_t item = of_warp + threadIdx.x % 32 / lanes;
    Range ids = {0, 0};
    if (item < items)
      ids = ones ? Range{item * lanes, item * lanes + lanes < bags ? item * lanes + lanes : bags}
                 : range_of(p.bags, item, p.errors, lane == 0);
    for (int64_t base = 0; base < parts; base += lanes) {
      const int64_t first = (base + lane) * kColumns;
      const bool mine = first < dim;
      Sum total[kColumns] = {};
#pragma unroll 1
      for (int64_t i = ids.begin; __any_sync(kWarp, i < ids.end); i += lanes) {
        FourRows own = {};
        const bool good = i + lane < ids.end && read_rows(p, i + lane, base == 0, own);
        const int64_t left = ids.end - i;
        const int count = left < 0 ? 0 : left < lanes ? (int)left : lanes;
        const int most = ones ? lanes : (int)__reduce_max_sync(kWarp, (unsigned)count);
#pragma unroll 1
        for (int j = 0; j < most; j += kAhead) {
          typename Reader::Loaded loaded[kAhead];
          bool use[kAhead];
          Sum w[kAhead];
#pragma unroll
          for (int k = 0; k < kAhead; ++k) {
            FourRows r;
            use[k] = from_lane(p, own, good, j + k, lanes, r) && mine && j + k < count;
            w[k] = 1;
            if (use[k]) reader.load(r, first, loaded[k]);
            if (use[k] && p.bags.weights) w[k] = ((const Sum*)p.bags.weights)[i + j + k];
          }
#pragma unroll
          for (int k = 0; k < kAhead; ++k) {
            if (use[k]) {
              Sum x[kColumns];
              reader.sum(loaded[k], x);
#pragma unroll
              for (int c = 0; c < kColumns; ++c) total[c] = multiply_add(x[c], w[k], total[c]);
            }
            if constexpr (ones) {
              if (mine && j + k < count)
                store_columns<kColumns>((Out*)p.out + (i + j + k) * dim + first, total,
                                        dim - first);
#pragma unroll
              for (int c = 0; c < kColumns; ++c) total[c] = 0;
            }
          }
        }
      }
      if (ones || !mine || item >= items) continue;
      if (p.bags.mean && ids.end > ids.begin) {
        const Sum d = (Sum)1 / (Sum)(ids.end - ids.begin);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) total[c] *= d;
      }
      store_columns<kColumns>((Out*)p.out + item * dim + first, total, dim - first);
    }
  }
}

// d out / d per_sample_weights: <grad of the bag, sum of the four rows>.
//
// A warp owns a bag, its lanes the columns. Each lane hashes one of 32 ids, and the rows go round
// by shuffle, those of two ids in flight. The gradient is read 16 bytes at a time where it lies so,
// from L1 but for the first time. Reads what the forward reads. Not yet measured.
template <typename Reader>
__global__ void __launch_bounds__(kBlock, 2) hashed_dot_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32), dim = p.tables.dim;
  for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < p.bags.bags;
       bag += warps) {
    const Range ids = range_of(p.bags, bag, p.errors, lane == 0);
    const Sum* grad = (const Sum*)p.grad + bag * dim;
    for (int64_t i = ids.begin; i < ids.end; i += 32) {
      FourRows own = {};
      const bool good = i + lane < ids.end && read_rows(p, i + lane, true, own);
      const int count = ids.end - i < 32 ? (int)(ids.end - i) : 32;
#pragma unroll 1
      for (int j = 0; j < count; j += kAhead) {
        FourRows r[kAhead];
        bool use[kAhead];
        Sum dot[kAhead] = {};
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          use[k] = from_lane(p, own, good, j + k, 32, r[k]) && j + k < count;
        for (int64_t first = lane * kColumns; first < dim; first += 32 * kColumns) {
          typename Reader::Loaded loaded[kAhead];
#pragma unroll
          for (int k = 0; k < kAhead; ++k)
            if (use[k]) reader.load(r[k], first, loaded[k]);
          Sum g[kColumns];
          load_columns<kColumns>(grad + first, dim - first, g);
#pragma unroll
          for (int k = 0; k < kAhead; ++k) {
            if (!use[k]) continue;
            Sum x[kColumns];
            reader.sum(loaded[k], x);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) dot[k] = multiply_add(g[c], x[c], dot[k]);
          }
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) dot[k] = warp_sum(dot[k]);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (lane == 0 && j + k < count) ((Sum*)p.out)[i + j + k] = dot[k];
      }
    }
  }
}

// ---- gradients of the tables -------------------------------------------------------------
//
// Per table the ids are sorted by row (stable: positions rise within a row) and each run of one
// row is summed, so that the 1,000 remainder rows, hit by every id, take no atomics and the bits
// do not depend on the schedule. A warp sums 64 sorted entries; a run inside them is written at
// once, the parts of runs that cross chunks go to `partials` (first: the run that was there
// before, second: the run that goes on) and a second kernel adds those in order. Gradients are
// read and written in the dtype of the tables, summed in float32 (float64 for float64).
// A sparse gradient numbers the runs: heads are counted per chunk, one block adds the counts up.
//
// Workspace, beside the results: 8 bytes an id (its row in the table at hand, its bag), the sorted
// list, 12 (32-bit rows, 64-bit positions), PyTorch's radix sort about as much again, and dim / 8
// bytes an id of partials in float32: 44 bytes an id at dim 96, whatever the tables' size. Hashes
// are computed once per table, 60 instructions an id, rather than kept: 12 bytes an id less.
// Bytes an id and table: the sort (4 passes over 12 bytes), 16 of entry, the gradient of its bag
// from L2. A row that takes most of millions of ids is summed by one block at the end.
// Tried before on the CPU: private copies of the remainder tables; 512 KB each at D = 128, more
// than shared memory holds.

// The bag of every id that is in one; a warp a bag.
__global__ void __launch_bounds__(kBlock) list_bags_kernel(const RunsParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < p.bags.bags;
       bag += warps) {
    const Range ids = range_of(p.bags, bag, p.errors, lane == 0);
    for (int64_t i = ids.begin + lane; i < ids.end && i < p.count; i += 32)
      p.bag_of[i] = (int32_t)bag;
  }
}

constexpr uint32_t kTop = 0x80000000u;

// Every id's row in one table; also of ids outside every bag, which add nothing there.
__global__ void __launch_bounds__(kBlock) list_rows_kernel(const RunsParams p) {
  const int64_t threads = (int64_t)gridDim.x * kBlock;
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < p.count; i += threads) {
    const FourRows r = rows_of(p.source, p.bags, i);
    uint32_t row = r.row[0];
#pragma unroll
    for (int k = 1; k < 4; ++k) row = p.table == k ? r.row[k] : row;
    p.keys[i] = (int32_t)(row ^ kTop);
  }
}

__device__ inline uint32_t row_at(const RunsParams& p, int64_t i) {
  return (uint32_t)p.sorted[i] ^ kTop;
}

__device__ inline bool is_head(const RunsParams& p, int64_t i) {
  return i == 0 || p.sorted[i] != p.sorted[i - 1];
}

// Rows that start in each chunk; a warp a chunk.
__global__ void __launch_bounds__(kBlock) count_heads_kernel(const RunsParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; chunk * kChunk < p.count;
       chunk += warps) {
    int heads = 0;
    for (int64_t i = chunk * kChunk + lane; i < (chunk + 1) * kChunk && i < p.count; i += 32)
      heads += is_head(p, i);
    heads = warp_sum(heads);
    if (lane == 0) p.starts[chunk] = heads;
  }
}

// Counts to starts, in place; one block, each thread a stretch of them.
__global__ void __launch_bounds__(kBlock) add_counts_kernel(const RunsParams p) {
  __shared__ int64_t sums[kBlock];
  const int64_t chunks = (p.count + kChunk - 1) / kChunk, each = (chunks + kBlock - 1) / kBlock;
  const int64_t begin = threadIdx.x * each < chunks ? threadIdx.x * each : chunks;
  const int64_t end = begin + each < chunks ? begin + each : chunks;
  int64_t mine = 0;
  for (int64_t c = begin; c < end; ++c) mine += p.starts[c];
  sums[threadIdx.x] = mine;
  __syncthreads();
  int64_t before = 0;
  for (int t = 0; t < (int)threadIdx.x; ++t) before += sums[t];
  for (int64_t c = begin; c < end; ++c) {
    const int64_t heads = p.starts[c];
    p.starts[c] = before;
    before += heads;
  }
  if (threadIdx.x == kBlock - 1) p.starts[chunks] = before;
}

template <typename Sum>
__device__ Sum scale_of(const Bags& b, int64_t position, int64_t bag) {
  if (b.weights) return ((const Sum*)b.weights)[position];
  return b.mean ? (Sum)1 / (Sum)(start_of(b, bag + 1) - start_of(b, bag)) : (Sum)1;
}

constexpr int kRunColumns = 4, kRunEntries = 4, kPartsAhead = 8, kWarps = kBlock / 32;

template <typename E, typename Sum>
__device__ inline void write_out(Sum (&total)[kRunColumns], E* to, int64_t first, int64_t dim) {
#pragma unroll
  for (int c = 0; c < kRunColumns; ++c) {
    if (first + c * 32 < dim) put(to + first + c * 32, total[c]);
    total[c] = 0;
  }
}

template <typename E>
using SumOf = std::conditional_t<std::is_same_v<E, double>, double, float>;

// What a lane keeps of the sorted entries of a chunk: those at its number and 32 further on.
template <typename Sum>
struct Entries {
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

// One warp a chunk; 128 columns at a time, so that loads of a row are whole lines. Each lane looks
// up two entries, which go round by shuffle, and the gradients of four entries are asked for before
// the first is added.
template <typename E>
__global__ void __launch_bounds__(kBlock, 2) sum_runs_kernel(const RunsParams p) {
  using Sum = SumOf<E>;
  const int lane = threadIdx.x % 32;
  const int64_t n = p.count, warps = (int64_t)gridDim.x * kWarps;
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; chunk * kChunk < n;
       chunk += warps) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
    const int count = (int)(end - begin);
    const Entries<Sum> entries = read_entries<Sum>(p, begin, end);
    const bool goes_past = end < n && !is_head(p, end);
    Sum* parts = (Sum*)p.partials + chunk * 2 * p.dim;
    for (int64_t first = lane; first - lane < p.dim; first += 32 * kRunColumns) {
      Sum total[kRunColumns] = {};
      bool before = !(entries.heads & 1);
      int64_t line = p.starts ? p.starts[chunk] - 1 : 0;
#pragma unroll 1
      for (int j = 0; j < count; j += kRunEntries) {
        Sum grad[kRunEntries][kRunColumns], scale[kRunEntries];
#pragma unroll
        for (int k = 0; k < kRunEntries; ++k) {
          const int from = (j + k) % 32;
          const int64_t bag = __shfl_sync(kWarp, j < 32 ? entries.bag[0] : entries.bag[1], from);
          scale[k] = __shfl_sync(kWarp, j < 32 ? entries.scale[0] : entries.scale[1], from);
          const E* row = (const E*)p.grad + bag * p.dim + first;
#pragma unroll
          for (int c = 0; c < kRunColumns; ++c)
            grad[k][c] = bag >= 0 && first + c * 32 < p.dim ? (Sum)widen(row[c * 32]) : (Sum)0;
        }
#pragma unroll
        for (int k = 0; k < kRunEntries; ++k) {
          const int at = j + k;
          if (at >= count) break;
          if (p.starts && entries.heads >> at & 1) {
            ++line;
            if (first == 0) p.found[line] = row_at(p, begin + at);
          }
#pragma unroll
          for (int c = 0; c < kRunColumns; ++c)
            total[c] = multiply_add(grad[k][c], scale[k], total[c]);
          const bool last = at + 1 == count;
          const bool goes_on = last ? goes_past : !(entries.heads >> (at + 1) & 1);
          if (goes_on && !last) continue;
          if (before || goes_on)
            write_out(total, parts + (before ? 0 : p.dim), first, p.dim);
          else
            write_out(total, (E*)p.out + (p.starts ? line : (int64_t)row_at(p, begin + at)) * p.dim,
                      first, p.dim);
          before = false;
        }
      }
    }
  }
}

// Chunks behind `chunk` that begin with `row`: sorted, so those that do come first.
__device__ inline int64_t chunks_behind(const RunsParams& p, int64_t chunk, uint32_t row) {
  const int lane = threadIdx.x % 32;
  for (int64_t next = chunk + 1;; next += 32) {
    const int64_t at = (next + lane) * kChunk;
    const unsigned same = __ballot_sync(kWarp, at < p.count && row_at(p, at) == row);
    if (same != kWarp) return next + __popc(same) - chunk - 1;
  }
}

// The first parts of the chunks from `from` to `to`, added in their order, eight asked for at once.
template <typename Sum>
__device__ inline void add_parts(const RunsParams& p, int64_t from, int64_t to, int64_t first,
                                 Sum (&total)[kRunColumns]) {
#pragma unroll 1
  for (int64_t chunk = from; chunk < to; chunk += kPartsAhead) {
    Sum part[kPartsAhead][kRunColumns];
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k) {
      const Sum* at = (const Sum*)p.partials + (chunk + k) * 2 * p.dim + first;
#pragma unroll
      for (int c = 0; c < kRunColumns; ++c)
        part[k][c] = chunk + k < to && first + c * 32 < p.dim ? at[c * 32] : (Sum)0;
    }
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k)
#pragma unroll
      for (int c = 0; c < kRunColumns; ++c) total[c] += part[k][c];
  }
}

// Parts of a run that goes on behind `chunk`, of which there are `count` more, added in the order
// of the chunks. A warp adds few by itself. Of many, each warp of the block adds a stretch, and one
// warp the eight sums: an id that takes a tenth of a million has 1,600 parts in each table.
template <typename E>
__device__ inline void join_run(const RunsParams& p, int64_t chunk, int64_t count, bool together,
                                SumOf<E> (*shares)[32 * kRunColumns]) {
  using Sum = SumOf<E>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row =
      p.starts ? p.starts[chunk + 1] - 1 : (int64_t)row_at(p, chunk * kChunk + kChunk - 1);
  for (int64_t first = lane; first - lane < p.dim; first += 32 * kRunColumns) {
    Sum total[kRunColumns] = {};
    if (together) {
      add_parts(p, chunk + 1 + warp * count / kWarps, chunk + 1 + (warp + 1) * count / kWarps,
                first, total);
#pragma unroll
      for (int c = 0; c < kRunColumns; ++c) shares[warp][lane + c * 32] = total[c];
      __syncthreads();
    }
    if (!together || warp == 0) {
      const Sum* own = (const Sum*)p.partials + (chunk * 2 + 1) * p.dim + first;
#pragma unroll
      for (int c = 0; c < kRunColumns; ++c)
        total[c] = first + c * 32 < p.dim ? own[c * 32] : (Sum)0;
      if (!together) add_parts(p, chunk + 1, chunk + 1 + count, first, total);
      for (int w = 0; together && w < kWarps; ++w)
#pragma unroll
        for (int c = 0; c < kRunColumns; ++c) total[c] += shares[w][lane + c * 32];
      write_out(total, (E*)p.out + row * p.dim, first, p.dim);
    }
    if (together) __syncthreads();
  }
}

// Joins the parts of runs that cross chunks; a block takes eight chunks, a warp looks at one.
template <typename E>
__global__ void __launch_bounds__(kBlock, 2) join_runs_kernel(const RunsParams p) {
  constexpr int64_t kFew = 32;
  __shared__ SumOf<E> shares[kWarps][32 * kRunColumns];
  __shared__ int64_t many[kWarps];  // parts of each warp's run, if the block has to add them
  const int warp = threadIdx.x / 32;
  for (int64_t base = (int64_t)blockIdx.x * kWarps; base * kChunk < p.count;
       base += (int64_t)gridDim.x * kWarps) {
    const int64_t chunk = base + warp, begin = chunk * kChunk, next = begin + kChunk;
    int64_t count = 0;
    if (next < p.count) {
      const uint32_t row = row_at(p, next - 1);
      const bool was_before = row_at(p, begin) == row && !is_head(p, begin);
      if (row_at(p, next) == row && !was_before) count = chunks_behind(p, chunk, row);
    }
    if (count > 0 && count <= kFew) join_run<E>(p, chunk, count, false, shares);
    if (threadIdx.x % 32 == 0) many[warp] = count > kFew ? count : 0;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w)
      if (many[w] > 0) join_run<E>(p, base + w, many[w], true, shares);
    __syncthreads();
  }
}

// ---- launches --------------------------------------------------------------------------

// Whether rows can be read 16 bytes at a time: all start on 16 bytes, columns side by side.
template <typename E>
bool on_16(const HashedTables& t) {
  bool good = t.dim * sizeof(E) % 16 == 0;
  for (int k = 0; k < 4; ++k)
    good = good && (uintptr_t)t.base[k] % 16 == 0 && t.column_bytes[k] == sizeof(E) &&
           t.row_bytes[k] % 16 == 0 && t.row_bytes[k] <= INT32_MAX;
  return good;
}

template <typename Reader, typename Out>
cudaError_t forward(const HashedParams& p, cudaStream_t stream) {
  const int64_t lanes = lanes_for(Reader::parts(p.tables)), bags = p.bags.bags;
  const int64_t items = p.bags.fixed == 1 ? (bags + lanes - 1) / lanes : bags;
  const dim3 grid(blocks_for(items, kBlock / lanes));
  return p.bags.fixed == 1 ? launch(hashed_kernel<Reader, Out, true>, grid, stream, p)
                           : launch(hashed_kernel<Reader, Out, false>, grid, stream, p);
}

template <typename Reader>
cudaError_t dot(const HashedParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.bags.bags, kBlock / 32));
  return launch(hashed_dot_kernel<Reader>, grid, stream, p);
}

template <typename E>
cudaError_t float_forward(const HashedParams& p, cudaStream_t stream) {
  return on_16<E>(p.tables) ? forward<FloatReader<E, 16 / sizeof(E)>, E>(p, stream)
                            : forward<FloatReader<E, 1>, E>(p, stream);
}

template <typename E>
cudaError_t float_dot(const HashedParams& p, cudaStream_t stream) {
  return on_16<E>(p.tables) ? dot<FloatReader<E, 16 / sizeof(E)>>(p, stream)
                            : dot<FloatReader<E, 1>>(p, stream);
}

template <int bits>
cudaError_t packed_forward(const HashedParams& p, cudaStream_t stream) {
  switch (p.out_element) {
    case Element::float16:
      return forward<PackedReader<bits>, __half>(p, stream);
    case Element::bfloat16:
      return forward<PackedReader<bits>, __nv_bfloat16>(p, stream);
    default:
      return forward<PackedReader<bits>, float>(p, stream);
  }
}

template <typename E>
cudaError_t sum_runs(const RunsParams& p, cudaStream_t stream) {
  const int64_t chunks = (p.count + kChunk - 1) / kChunk;
  const dim3 grid(blocks_for(chunks, kBlock / 32));
  const cudaError_t status = launch(sum_runs_kernel<E>, grid, stream, p);
  return status == cudaSuccess ? launch(join_runs_kernel<E>, grid, stream, p) : status;
}

}  // namespace

cudaError_t hashed_embedding_bag_launch(const HashedParams& p, cudaStream_t stream) {
  if (p.tables.bits == 8) return packed_forward<8>(p, stream);
  if (p.tables.bits == 4) return packed_forward<4>(p, stream);
  switch (p.tables.element) {
    case Element::float64:
      return float_forward<double>(p, stream);
    case Element::float16:
      return float_forward<__half>(p, stream);
    case Element::bfloat16:
      return float_forward<__nv_bfloat16>(p, stream);
    default:
      return float_forward<float>(p, stream);
  }
}

cudaError_t hashed_weight_gradient_launch(const HashedParams& p, cudaStream_t stream) {
  if (p.tables.bits == 8) return dot<PackedReader<8>>(p, stream);
  if (p.tables.bits == 4) return dot<PackedReader<4>>(p, stream);
  switch (p.tables.element) {
    case Element::float64:
      return float_dot<double>(p, stream);
    case Element::float16:
      return float_dot<__half>(p, stream);
    case Element::bfloat16:
      return float_dot<__nv_bfloat16>(p, stream);
    default:
      return float_dot<float>(p, stream);
  }
}

cudaError_t hashed_bags_launch(const RunsParams& p, cudaStream_t stream) {
  return launch(list_bags_kernel, dim3(blocks_for(p.bags.bags, kBlock / 32)), stream, p);
}

cudaError_t hashed_rows_launch(const RunsParams& p, cudaStream_t stream) {
  return launch(list_rows_kernel, dim3(blocks_for(p.count, kBlock)), stream, p);
}

cudaError_t hashed_count_launch(const RunsParams& p, cudaStream_t stream) {
  const int64_t chunks = (p.count + kChunk - 1) / kChunk;
  const dim3 grid(blocks_for(chunks, kBlock / 32));
  const cudaError_t status = launch(count_heads_kernel, grid, stream, p);
  return status == cudaSuccess ? launch(add_counts_kernel, dim3(1), stream, p) : status;
}

cudaError_t hashed_runs_launch(const RunsParams& p, cudaStream_t stream) {
  switch (p.element) {
    case Element::float64:
      return sum_runs<double>(p, stream);
    case Element::float16:
      return sum_runs<__half>(p, stream);
    case Element::bfloat16:
      return sum_runs<__nv_bfloat16>(p, stream);
    default:
      return sum_runs<float>(p, stream);
  }
}

}  // namespace lirank::gpu
