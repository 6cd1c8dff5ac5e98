// Hashed embeddings on the GPU: hash, split, four gathers, pool; and their gradients.
#include "hashed_embedding.cuh"

#include <type_traits>

#include "codes.cuh"

namespace lirank::gpu {
namespace {

// ---- rows of an id ---------------------------------------------------------------------

struct FourRows {
  int64_t row[4];
};

__device__ inline FourRows rows_of(const HashedSource& s, const Bags& b, int64_t i) {
  if (s.rows[0]) return {{s.rows[0][i], s.rows[1][i], s.rows[2][i], s.rows[3][i]}};
  const uint64_t id = (uint64_t)((const int64_t*)b.ids)[i];
  const murmur::Rows r = murmur::rows_of(s.prehashed ? id : murmur::hash_id(id, s.seed), s.rule);
  return {{r.quotient_b, r.remainder_b, r.quotient_c, r.remainder_c}};
}

__device__ inline bool inside(const HashedTables& t, const FourRows& r) {
  bool good = true;
#pragma unroll
  for (int k = 0; k < 4; ++k) good = good && (uint64_t)r.row[k] < (uint64_t)t.heights[k];
  return good;
}

// Rows of the id at `i`, hashed by this lane; row -1 where a given row is out of range.
__device__ inline FourRows checked_rows(const HashedParams& p, int64_t i, bool tell) {
  FourRows r = rows_of(p.source, p.bags, i);
  if (p.source.rows[0] && !inside(p.tables, r)) {
    if (tell) report(p.errors, Wrong::row, i, r.row[0], 0, p.tables.heights[0]);
    r.row[0] = -1;
  }
  return r;
}

__device__ inline FourRows from_lane(unsigned mask, const FourRows& mine, int lane, int lanes) {
  FourRows r;
#pragma unroll
  for (int k = 0; k < 4; ++k) r.row[k] = __shfl_sync(mask, mine.row[k], lane, lanes);
  return r;
}

// ---- readers: the columns of one lane, summed over the four rows -------------------------

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// `columns` elements a lane: 16 bytes where rows lie on 16, else one element, lanes side by side.
// One element at a time reads tables of any strides, so that none has to be copied.
template <typename E, int columns>
struct FloatReader {
  using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;
  static constexpr int kColumns = columns;
  struct alignas(sizeof(E) * columns) Part {
    E x[columns];
  };
  const HashedTables& t;
  __device__ explicit FloatReader(const HashedTables& t) : t(t) {}
  __device__ int64_t parts() const { return (t.dim + columns - 1) / columns; }
  __device__ void read(const FourRows& r, int64_t first, Sum (&x)[columns]) const {
    Part part[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      part[k] = *(const Part*)((const E*)t.base[k] + r.row[k] * t.row_stride[k] +
                               (columns > 1 ? first : first * t.column_stride[k]));
#pragma unroll
    for (int c = 0; c < columns; ++c)
      x[c] =
          (widen(part[0].x[c]) + widen(part[1].x[c])) + (widen(part[2].x[c]) + widen(part[3].x[c]));
  }
};

template <int bits>
struct PackedReader {
  using Sum = float;
  static constexpr int kColumns = 64 / bits;
  const HashedTables& t;
  rowwise::Layout l;
  __device__ explicit PackedReader(const HashedTables& t) : t(t), l(rowwise::layout(t.dim, bits)) {}
  __device__ int64_t parts() const { return l.code_bytes / 8; }
  __device__ void read(const FourRows& r, int64_t first, float (&x)[kColumns]) const {
    Words<8> codes[4];
    rowwise::Pair pair[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint8_t* base = (const uint8_t*)t.base[k];
      codes[k] = load_words(base + r.row[k] * l.code_stride + first * bits / 8, codes + k);
      pair[k] = load_pair(base + rowwise::first_pair(l, t.heights[k]) + r.row[k] * l.pair_stride);
    }
    const float mids = (pair[0].mid + pair[1].mid) + (pair[2].mid + pair[3].mid);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) x[c] = mids;
#pragma unroll
    for (int k = 0; k < 4; ++k) add_codes<bits, 8>(codes[k], pair[k].scale, x);
  }
};

// ---- forward ---------------------------------------------------------------------------

template <typename Sum>
__device__ Sum weight_of(const Bags& b, int64_t i) {
  return b.weights ? ((const Sum*)b.weights)[i] : (Sum)1;
}

// Lanes of the group of `lane_count` that this thread is in, as a mask of the warp.
__device__ inline unsigned group_mask(int lanes) {
  const unsigned all = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  return all << (threadIdx.x % 32 / lanes * lanes);
}

// hashed_embedding_bag: one pass, no hash and no row is ever written.
//
// Grid over groups, 256 threads. A group of 1 to 32 lanes covers a row, 16 bytes a lane; each
// lane hashes one id and splits it, then the rows go round by shuffle, so that a hash (six 64-bit
// products, about 60 instructions) costs 60 / lanes per id and lane and hides behind the gathers.
// A group owns a bag, or, where every bag holds one id, as many bags as it has lanes. Per id four
// loads a lane, unrolled over two ids. Sums stay in registers, in the order of the ids:
// out = sum w ((qb + rb) + (qc + rc)).
//
// Bytes: two quotient rows an id from DRAM (the remainder tables, 1,000 rows, stay in L2), 8 of
// id, the result once. Floor on an H100 by its datasheet (3.35 TB/s), D = 128 fp16, one id a bag:
// 776 bytes, 4.3 G ids/s; pooled over 20: 533 bytes, 6.3 G ids/s. Not yet measured.
//
// Assumes rows on 16 bytes for the wide path (checked by the launcher), else one element a lane.
// Dropped on paper: every lane hashing every id (100 instructions a warp and id, more than the
// gathers cost), hashes by a kernel of their own (16 bytes an id more, and a second launch).
template <typename Reader, typename Out>
__global__ void __launch_bounds__(kBlock, 2) hashed_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int lanes = lanes_for(reader.parts()), lane = threadIdx.x % lanes;
  const unsigned mask = group_mask(lanes);
  const bool ones = p.bags.fixed == 1;
  const int64_t bags = p.bags.bags, items = ones ? (bags + lanes - 1) / lanes : bags;
  const int64_t groups = (int64_t)gridDim.x * (kBlock / lanes);
  for (int64_t item = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / lanes; item < items;
       item += groups) {
    Range ids = {item * lanes, item * lanes + lanes < bags ? item * lanes + lanes : bags};
    if (!ones) ids = range_of(p.bags, item, p.errors, lane == 0);
    const Sum d =
        p.bags.mean && !ones && ids.end > ids.begin ? (Sum)1 / (Sum)(ids.end - ids.begin) : (Sum)1;
    for (int64_t base = 0; base < reader.parts(); base += lanes) {
      const int64_t first = (base + lane) * kColumns;
      const bool mine = first < p.tables.dim;
      Sum total[kColumns] = {};
      for (int64_t i = ids.begin; i < ids.end; i += lanes) {
        FourRows own = {};
        if (i + lane < ids.end) own = checked_rows(p, i + lane, base == 0);
        const int count = ids.end - i < lanes ? (int)(ids.end - i) : lanes;
#pragma unroll 2
        for (int j = 0; j < count; ++j) {
          const FourRows r = from_lane(mask, own, j, lanes);
          if (mine && r.row[0] >= 0) {
            Sum x[kColumns];
            reader.read(r, first, x);
            const Sum w = weight_of<Sum>(p.bags, i + j);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) total[c] = multiply_add(x[c], w, total[c]);
          }
          if (!ones) continue;
          if (mine)
            store_columns<kColumns>((Out*)p.out + (i + j) * p.tables.dim + first, total,
                                    p.tables.dim - first);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) total[c] = 0;
        }
      }
      if (ones || !mine) continue;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) total[c] *= d;
      store_columns<kColumns>((Out*)p.out + item * p.tables.dim + first, total,
                              p.tables.dim - first);
    }
  }
}

// d out / d per_sample_weights: <grad of the bag, sum of the four rows>, one warp a bag, the
// columns over its lanes. Reads what the forward reads; hashes are redone by every lane.
template <typename Reader>
__global__ void __launch_bounds__(kBlock) hashed_dot_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < p.bags.bags;
       bag += warps) {
    const Range ids = range_of(p.bags, bag, p.errors, lane == 0);
    const Sum* grad = (const Sum*)p.grad + bag * p.tables.dim;
    for (int64_t i = ids.begin; i < ids.end; ++i) {
      const FourRows r = checked_rows(p, i, lane == 0);
      Sum dot = 0;
      for (int64_t first = lane * kColumns; first < p.tables.dim; first += 32 * kColumns) {
        Sum x[kColumns];
        reader.read(r, first, x);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (first + c < p.tables.dim) dot = multiply_add(grad[first + c], x[c], dot);
      }
      dot = warp_sum(dot);
      if (lane == 0) ((Sum*)p.out)[i] = dot;
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
// from L2. Assumes that no row takes most of millions of ids: its parts are added by one warp.
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
    int64_t row = r.row[0];
#pragma unroll
    for (int k = 1; k < 4; ++k) row = p.table == k ? r.row[k] : row;
    p.keys[i] = (int32_t)((uint32_t)row ^ kTop);
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

constexpr int kRunColumns = 4;

// Adds what lies at `from`, `columns` apart by a warp's lanes.
template <typename E, typename Sum>
__device__ inline void add_to(Sum (&total)[kRunColumns], const E* from, int64_t first, int64_t dim,
                              Sum w) {
#pragma unroll
  for (int c = 0; c < kRunColumns; ++c)
    if (first + c * 32 < dim) total[c] = multiply_add(widen(from[first + c * 32]), w, total[c]);
}

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

// One warp a chunk; 128 columns at a time, so that loads of a row are whole lines.
template <typename E>
__global__ void __launch_bounds__(kBlock, 2) sum_runs_kernel(const RunsParams p) {
  using Sum = SumOf<E>;
  const int lane = threadIdx.x % 32;
  const int64_t n = p.count, warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; chunk * kChunk < n;
       chunk += warps) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
    Sum* parts = (Sum*)p.partials + chunk * 2 * p.dim;
    for (int64_t first = lane; first - lane < p.dim; first += 32 * kRunColumns) {
      Sum total[kRunColumns] = {};
      bool before = !is_head(p, begin);
      int64_t line = p.starts ? p.starts[chunk] - 1 : 0;
      for (int64_t i = begin; i < end; ++i) {
        if (p.starts && is_head(p, i)) {
          ++line;
          if (first == 0) p.found[line] = row_at(p, i);
        }
        const int64_t position = p.positions[i], bag = p.bag_of[position];
        if (bag >= 0)
          add_to(total, (const E*)p.grad + bag * p.dim, first, p.dim,
                 scale_of<Sum>(p.bags, position, bag));
        const bool goes_on = i + 1 < n && !is_head(p, i + 1);
        if (goes_on && i + 1 < end) continue;
        if (before || goes_on)
          write_out(total, parts + (before ? 0 : p.dim), first, p.dim);
        else
          write_out(total, (E*)p.out + (p.starts ? line : (int64_t)row_at(p, i)) * p.dim, first,
                    p.dim);
        before = false;
      }
    }
  }
}

// One warp a chunk in which a run starts that goes on: adds its parts in the order of the chunks.
template <typename E>
__global__ void __launch_bounds__(kBlock, 2) join_runs_kernel(const RunsParams p) {
  using Sum = SumOf<E>;
  const int lane = threadIdx.x % 32;
  const int64_t n = p.count, warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; (chunk + 1) * kChunk < n;
       chunk += warps) {
    const int64_t begin = chunk * kChunk, next = begin + kChunk;
    const uint32_t row = row_at(p, next - 1);
    const bool whole = row_at(p, begin) == row;
    const bool was_before = whole && !is_head(p, begin);
    if (row_at(p, next) != row || was_before) continue;
    const Sum* parts = (const Sum*)p.partials;
    const int64_t line = p.starts ? p.starts[chunk + 1] - 1 : (int64_t)row;
    for (int64_t first = lane; first - lane < p.dim; first += 32 * kRunColumns) {
      Sum total[kRunColumns] = {};
      add_to(total, parts + (chunk * 2 + 1) * p.dim, first, p.dim, (Sum)1);
      for (int64_t c = chunk + 1; c * kChunk < n && row_at(p, c * kChunk) == row; ++c)
        add_to(total, parts + c * 2 * p.dim, first, p.dim, (Sum)1);
      write_out(total, (E*)p.out + line * p.dim, first, p.dim);
    }
  }
}

// ---- launches --------------------------------------------------------------------------

bool on_16(const HashedTables& t, int64_t element_bytes) {
  bool good = t.dim * element_bytes % 16 == 0;
  for (int k = 0; k < 4; ++k)
    good = good && (uintptr_t)t.base[k] % 16 == 0 && t.column_stride[k] == 1 &&
           t.row_stride[k] * element_bytes % 16 == 0;
  return good;
}

dim3 hashed_grid(const HashedParams& p) { return dim3(blocks_for(p.bags.bags, kBlock / 32)); }

template <typename E, int wide>
cudaError_t float_forward(const HashedParams& p, cudaStream_t stream) {
  return on_16(p.tables, sizeof(E))
             ? launch(hashed_kernel<FloatReader<E, wide>, E>, hashed_grid(p), stream, p)
             : launch(hashed_kernel<FloatReader<E, 1>, E>, hashed_grid(p), stream, p);
}

template <typename E, int wide>
cudaError_t float_dot(const HashedParams& p, cudaStream_t stream) {
  return on_16(p.tables, sizeof(E))
             ? launch(hashed_dot_kernel<FloatReader<E, wide>>, hashed_grid(p), stream, p)
             : launch(hashed_dot_kernel<FloatReader<E, 1>>, hashed_grid(p), stream, p);
}

template <int bits>
cudaError_t packed_forward(const HashedParams& p, cudaStream_t stream) {
  using Reader = PackedReader<bits>;
  switch (p.out_element) {
    case Element::float16:
      return launch(hashed_kernel<Reader, __half>, hashed_grid(p), stream, p);
    case Element::bfloat16:
      return launch(hashed_kernel<Reader, __nv_bfloat16>, hashed_grid(p), stream, p);
    default:
      return launch(hashed_kernel<Reader, float>, hashed_grid(p), stream, p);
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
      return float_forward<double, 2>(p, stream);
    case Element::float16:
      return float_forward<__half, 8>(p, stream);
    case Element::bfloat16:
      return float_forward<__nv_bfloat16, 8>(p, stream);
    default:
      return float_forward<float, 4>(p, stream);
  }
}

cudaError_t hashed_weight_gradient_launch(const HashedParams& p, cudaStream_t stream) {
  if (p.tables.bits == 8)
    return launch(hashed_dot_kernel<PackedReader<8>>, hashed_grid(p), stream, p);
  if (p.tables.bits == 4)
    return launch(hashed_dot_kernel<PackedReader<4>>, hashed_grid(p), stream, p);
  switch (p.tables.element) {
    case Element::float64:
      return float_dot<double, 2>(p, stream);
    case Element::float16:
      return float_dot<__half, 8>(p, stream);
    case Element::bfloat16:
      return float_dot<__nv_bfloat16, 8>(p, stream);
    default:
      return float_dot<float, 4>(p, stream);
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
