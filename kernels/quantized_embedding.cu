// Look-ups in row-wise quantized tables on the GPU. Layout: csrc/quantized_embedding_layout.h.
#include "quantized_embedding.cuh"

#include "quantized_tables.cuh"

namespace lirank::gpu {
namespace {

// Pools the bags from `bag` to `stop`, whose ids are consecutive, for the columns of one lane.
// These start at byte `at` of a row.
template <int bits, int bytes, typename Id, typename Out>
__device__ __forceinline__ void pool_run(const PoolParams& p, const Table& t, int64_t index,
                                         int64_t bag, int64_t stop, Range ids, int64_t at,
                                         bool tell) {
  constexpr int kColumns = bytes * 8 / bits;
  const int64_t first = at * 8 / bits, items = index * p.bags.bag_count;
  float total[kColumns] = {}, mids = 0;
  int64_t end = bag + 1 < stop ? p.bags.start(items + bag + 1) : ids.end;
  const auto finish = [&] {
    float d = 1.0f;
    if (p.bags.mean) {
      const int64_t count = end - p.bags.start(items + bag);
      d = count > 0 ? 1.0f / (float)count : 1.0f;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = (total[c] + mids) * d;
    if (first < t.dim)
      store_columns<kColumns>((Out*)p.out + bag * p.set.width + t.column + first, total,
                              t.dim - first);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = 0;
    mids = 0;
    ++bag;
    end = bag < stop ? p.bags.start(items + bag + 1) : -1;
  };
  Id next[kRows];
  read_ids(p.bags, ids.begin, ids.end, next);
#pragma unroll 1
  for (int64_t i = ids.begin; bag < stop; i += kRows) {
    Id row[kRows];
    Words<bytes> codes[kRows];
    rowwise::Pair pair[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) row[k] = next[k];
    const bool bad = read_rows<bytes>(t, row, at, codes, pair);
    read_ids(p.bags, i + kRows, ids.end, next);
    if (bad && tell) report_rows<Id>(p, t, index, i, i + kRows < ids.end ? i + kRows : ids.end);
    if (p.bags.weights) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const float w = i + k < ids.end ? __ldg((const float*)p.bags.weights + i + k) : 0.0f;
        pair[k] = {__fmul_rn(pair[k].scale, w), __fmul_rn(pair[k].mid, w)};
      }
    }
    // A bag may end in five places, which share one copy of `finish`. With a copy in each place the
    // code was larger than the instruction cache.
    const auto add = [&](int k) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    // Codes are converted here. Converted above the switch, four rows of floats spill.
#pragma unroll
      for (int w = 0; w < bytes / 4; ++w) asm volatile("" : "+r"(codes[k].w[w]));
#endif
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

// Whether the offsets of `count` items from `item` on are valid.
__device__ inline bool items_fit(const Bags& b, int64_t item, int64_t count) {
  if (b.ids_per_bag >= 0) return true;
  int64_t before = b.start(item);
  bool good = before >= 0 && (item > 0 || before == 0);
#pragma unroll 4
  for (int64_t k = 1; k <= count; ++k) {
    const int64_t start = b.start(item + k);
    good = good && start >= before;
    before = start;
  }
  return good && before <= b.id_count;
}

template <int bits, int bytes, typename Id, typename Out>
__device__ void pool_table(const PoolParams& p, const Table& t, int64_t index) {
  const int lanes = lanes_for((t.code_bytes + bytes - 1) / bytes);
  const int lane = threadIdx.x % lanes, groups = kBlock / lanes;
  const int64_t bags = p.bags.bag_count, items = index * bags;
  for (int64_t run = (int64_t)blockIdx.x * groups + threadIdx.x / lanes; run * p.run < bags;
       run += (int64_t)gridDim.x * groups) {
    int64_t bag = run * p.run;
    const int64_t last = bag + p.run < bags ? bag + p.run : bags;
    const bool good = items_fit(p.bags, items + bag, last - bag);
    while (bag < last) {  // one turn, but for bad offsets: then a turn a bag
      const int64_t stop = good ? last : bag + 1;
      const Range ids = good ? Range{p.bags.start(items + bag), p.bags.start(items + stop)}
                             : range_of(p.bags, items + bag, p.errors, lane == 0);
      for (int64_t base = 0; base < t.code_bytes; base += lanes * bytes)
        pool_run<bits, bytes, Id, Out>(p, t, index, bag, stop, ids, base + lane * bytes,
                                       base == 0 && lane == 0);
      bag = stop;
    }
  }
}

template <typename Out>
__device__ void zero_all(const PoolParams& p) {
  const int64_t n = p.bags.bag_count * p.set.width;
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < n;
       i += (int64_t)gridDim.x * kBlock)
    put((Out*)p.out + i, 0.0f);
}

// quantized_embedding_bag(s): pooled rows of all tables in one launch.
//
// The grid is (blocks, tables), with 256 threads per block and four times as many blocks as the
// device can hold. A group of lanes (the smallest power of two that covers the row, 1 to 32) takes
// a run of 1 to 8 neighboring bags. It is 8 if bags hold one or two ids, so that the offsets and
// ids of many bags are loaded together. The ids of a run are consecutive, and the group processes
// four at a time, even across bags. For four ids, each lane loads 16 bytes of codes (8-bit rows on
// whole cache lines) or 8 bytes, the pairs, and the next four ids, before it uses the first. A
// result is written where its bag ends. Bad ids are reported after the loads are issued. The sums
// of a lane's columns stay in registers: pooled = sum scale * code + sum mid. They follow the order
// of the ids, so results do not depend on the grid or the device.
//
// Bytes: code_bytes + 8 per row, one id each, and the result once. DRAM moves sectors of 32 bytes,
// so a 128-wide int8 row of 136 bytes outside the cache moves 160. By the datasheet of an H100
// (3.35 TB/s) the floor for 1,048,560 rows of 160 bytes is 0.050 ms. In bags of 20, the bare gather
// of 128 of those bytes (kernels/ceilings.cu) takes 0.087 ms there, and this kernel 0.093 ms. A
// code takes 3 instructions, which at the floor is 9.5 of 28.7 T lane-instructions per second.
//
// Assumes that rows and pairs are aligned to 8 bytes (quantized_embedding_layout.h).
//
// Tried and dropped, with the time for those bags:
// - one id after another, each checked and weighted before the next: 0.129 ms, because the
//   multiplication by the weight waits for a row before the next row is loaded;
// - rows read without a branch, with row 0 instead of bad ones, and codes converted when they are
//   added: 0.110 ms;
// - 16 bytes of 4-bit codes per lane: the SASS shows that 32 sums spill.
// Dropped on paper:
// - one bag per warp: at D = 32 three of four lanes are idle;
// - ids by shuffle: a shuffle costs as much as a broadcast load from L1;
// - descriptors of tables in a workspace: it takes an allocation.
// Written and not yet timed:
// - a ring of five rows per lane in shared memory, filled by cp.async across bags, with 80
//   registers and three blocks on a multiprocessor; it should take 0.075 ms for those bags;
// - a kernel for bags of one id, 16 lanes per row, that stores whole cache lines past the cache; it
//   should take 0.17 ms for 1,048,576 bags, where this one takes 0.22.
template <int bits, typename Id, typename Out>
__global__ void __launch_bounds__(kBlock, 2) pool_kernel(const PoolParams p) {
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

template <int bits, typename Id>
cudaError_t pool_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  switch (p.dtype) {
    case DType::float16:
      return launch(pool_kernel<bits, Id, __half>, grid, stream, p);
    case DType::bfloat16:
      return launch(pool_kernel<bits, Id, __nv_bfloat16>, grid, stream, p);
    default:
      return launch(pool_kernel<bits, Id, float>, grid, stream, p);
  }
}

template <int bits>
cudaError_t pool_launch(const PoolParams& p, dim3 grid, cudaStream_t stream) {
  return p.bags.ids_are_int64 ? pool_launch<bits, int64_t>(p, grid, stream)
                              : pool_launch<bits, int32_t>(p, grid, stream);
}

// Number of neighboring bags that a group takes at once. It is large if bags hold few ids, provided
// that the groups still fill the device.
int run_of(const PoolParams& p) {
  const int64_t items = p.bags.bag_count * p.set.tables, ids = p.bags.id_count;
  int run = ids <= 2 * items ? 8 : ids <= 4 * items ? 4 : ids <= 8 * items ? 2 : 1;
  while (run > 1 && items / run < 2 * multiprocessors() * groups_of(p)) run /= 2;
  return run;
}

}  // namespace

cudaError_t quantized_embedding_bags_launch(const PoolParams& params, cudaStream_t stream) {
  PoolParams p = params;
  p.run = run_of(p);
  return p.set.bits == 8 ? pool_launch<8>(p, bag_grid(p), stream)
                         : pool_launch<4>(p, bag_grid(p), stream);
}

}  // namespace lirank::gpu
