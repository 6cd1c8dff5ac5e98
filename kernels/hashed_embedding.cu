// Hashed embeddings on the GPU: hash, split, four gathers, pool; and the gradient of the weights.
#include "hashed_embedding.cuh"

#include "codes.cuh"
#include "hashed_rows.cuh"

namespace lirank::gpu {
namespace {

// Rows that lane `lane` of this group has found. The whole warp takes part, so that the mask is a
// constant: with a mask in a register every shuffle is compiled twice, for lanes that diverge.
__device__ inline FourRows from_lane(const FourRows& mine, int lane, int lanes) {
  FourRows r;
#pragma unroll
  for (int k = 0; k < 4; ++k) r.row[k] = __shfl_sync(kWarp, mine.row[k], lane, lanes);
  return r;
}

// ---- readers: the columns of one lane, summed over the four rows -------------------------

// `columns` elements a lane: 16 bytes where rows lie on 16, else one element, lanes side by side.
// One element at a time reads tables of any strides, so that none has to be copied.
template <typename E, int columns>
struct FloatReader {
  using Sum = SumOf<E>;
  static constexpr int kColumns = columns;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
  static constexpr int kBlocks = 3;  // a multiprocessor; 80 registers
#else
  static constexpr int kBlocks = 2;  // with 3, two ids of eight halves spill on sm_80 and sm_100
#endif
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

// hashed_embedding_bag in one pass. Neither hashes nor row numbers are written to memory.
//
// A block has 256 threads, and there are as many blocks as there is work. A group of 1 to 32 lanes
// covers a row, with 16 bytes per lane. Each lane hashes one id and splits the hash into four rows
// of 32 bits, which are then passed to the other lanes by shuffle. A hash (six 64-bit products,
// about 60 instructions) therefore costs 60 / lanes per id and lane, which the gathers hide. A
// group takes one bag, or as many bags as it has lanes if every bag holds one id (`ones`). The four
// rows of two ids are loaded before the first is used. All groups of a warp make as many rounds as
// the longest of their bags needs, and lanes that are done load nothing. Sums stay in registers, in
// the order of the ids: out = sum w ((qb + rb) + (qc + rc)).
//
// Bytes: two quotient rows per id from DRAM (the remainder tables of 1,000 rows stay in L2), 8 for
// the id, and the result once. By the datasheet of an H100 (3.35 TB/s) the floor at D = 128 in
// fp16 is 776 bytes or 4.3 G ids/s with one id per bag, and 533 bytes or 6.3 G ids/s with 20. The
// kernel reaches 3.5 and 5.1 G ids/s there. The bare gather of two rows per id
// (kernels/ceilings.cu) reaches 5.4 G ids/s with 20.
//
// The wide path assumes rows aligned to 16 bytes, which the launcher checks. Otherwise a lane takes
// one element.
//
// Tried in SASS and dropped:
// - a loop over ids that is unrolled by two: the loads of the second id come after the sums of the
//   first;
// - shuffles of 64-bit rows under a mask of the group.
// Dropped on paper:
// - every lane hashes every id: 100 instructions per warp and id, more than the gathers cost;
// - a separate kernel for the hashes: 16 more bytes per id, and a second launch;
// - the two halves of the hash by shuffle: four divisions per lane cost more than two shuffles.
// Written and not yet timed:
// - 16 bytes of 8-bit codes per lane, with the rows of four ids on their way to shared memory
//   (cp.async); 1M ids in bags of 20 should take 0.16 ms, and take 0.22 now.
template <typename Reader, typename Out, bool ones>
__global__ void __launch_bounds__(kBlock, ones ? 2 : Reader::kBlocks)
    hashed_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int64_t parts = Reader::parts(p.tables), dim = p.tables.dim, bags = p.bags.bag_count;
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
        if (i + lane < ids.end) own = rows_of(p.rule, p.bags, i + lane);
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
            const FourRows r = from_lane(own, j + k, lanes);
            use[k] = mine && j + k < count;
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
// A warp takes a bag, with its lanes along the columns. Each lane hashes one of 32 ids, and the
// rows are passed on by shuffle, with the loads of two ids in flight. The gradient is read 16 bytes
// at a time if it is aligned to 16, and mostly from L1. Otherwise it reads the same bytes as the
// forward. Not yet measured.
template <typename Reader>
__global__ void __launch_bounds__(kBlock, 2) hashed_dot_kernel(const HashedParams p) {
  using Sum = typename Reader::Sum;
  constexpr int kColumns = Reader::kColumns;
  const Reader reader(p.tables);
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32), dim = p.tables.dim;
  for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < p.bags.bag_count;
       bag += warps) {
    const Range ids = range_of(p.bags, bag, p.errors, lane == 0);
    const Sum* grad = (const Sum*)p.grad + bag * dim;
    for (int64_t i = ids.begin; i < ids.end; i += 32) {
      FourRows own = {};
      if (i + lane < ids.end) own = rows_of(p.rule, p.bags, i + lane);
      const int count = ids.end - i < 32 ? (int)(ids.end - i) : 32;
#pragma unroll 1
      for (int j = 0; j < count; j += kAhead) {
        FourRows r[kAhead];
        bool use[kAhead];
        Sum dot[kAhead] = {};
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          r[k] = from_lane(own, j + k, 32);
          use[k] = j + k < count;
        }
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
  const int64_t lanes = lanes_for(Reader::parts(p.tables)), bags = p.bags.bag_count;
  const int64_t items = p.bags.ids_per_bag == 1 ? (bags + lanes - 1) / lanes : bags;
  const dim3 grid(blocks_for(items, kBlock / lanes));
  return p.bags.ids_per_bag == 1 ? launch(hashed_kernel<Reader, Out, true>, grid, stream, p)
                                 : launch(hashed_kernel<Reader, Out, false>, grid, stream, p);
}

template <typename Reader>
cudaError_t dot(const HashedParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.bags.bag_count, kBlock / 32));
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
  switch (p.out_dtype) {
    case DType::float16:
      return forward<PackedReader<bits>, __half>(p, stream);
    case DType::bfloat16:
      return forward<PackedReader<bits>, __nv_bfloat16>(p, stream);
    default:
      return forward<PackedReader<bits>, float>(p, stream);
  }
}

}  // namespace

cudaError_t hashed_embedding_bag_launch(const HashedParams& p, cudaStream_t stream) {
  if (p.tables.bits == 8) return packed_forward<8>(p, stream);
  if (p.tables.bits == 4) return packed_forward<4>(p, stream);
  switch (p.tables.dtype) {
    case DType::float64:
      return float_forward<double>(p, stream);
    case DType::float16:
      return float_forward<__half>(p, stream);
    case DType::bfloat16:
      return float_forward<__nv_bfloat16>(p, stream);
    default:
      return float_forward<float>(p, stream);
  }
}

cudaError_t hashed_weight_gradient_launch(const HashedParams& p, cudaStream_t stream) {
  if (p.tables.bits == 8) return dot<PackedReader<8>>(p, stream);
  if (p.tables.bits == 4) return dot<PackedReader<4>>(p, stream);
  switch (p.tables.dtype) {
    case DType::float64:
      return float_dot<double>(p, stream);
    case DType::float16:
      return float_dot<__half>(p, stream);
    case DType::bfloat16:
      return float_dot<__nv_bfloat16>(p, stream);
    default:
      return float_dot<float>(p, stream);
  }
}

}  // namespace lirank::gpu
