// Look-ups in row-wise quantized tables on the GPU. Layout: csrc/quantized_embedding_layout.h.
#include "quantized_embedding.cuh"

#include "async_copy.cuh"
#include "codes.cuh"
#include "quantized_tables.cuh"

namespace lirank::gpu {
namespace {

constexpr int kPoolBlock = 128;   // threads
constexpr int kPoolResident = 5;  // blocks a multiprocessor: 36 KB each, 96 registers a thread

// What is on its way, in places of each thread's own: the rows of four ids while four others are
// added, and ids two turns before their rows are asked for.
struct Ring {
  uint4 codes[2][kRows][kPoolBlock];
  rowwise::Pair pairs[2][kRows][kPoolBlock];
  float weights[2][kRows][kPoolBlock];
  int64_t ids[2][kRows][kPoolBlock];
};

template <typename Id>
__device__ __forceinline__ void ask_for_ids(const Bags& b, Ring& ring, int half, int64_t i,
                                            int64_t last) {
#pragma unroll
  for (int k = 0; k < kRows; ++k)
    copy_async<sizeof(Id)>(&ring.ids[half][k][threadIdx.x], (const Id*)b.ids + i + k, i + k < last);
}

// Asks for the rows of four ids that have arrived; zeros come where an id is out of range, which is
// reported.
template <int bytes, typename Id>
__device__ __forceinline__ void ask_for_rows(const PoolParams& p, const Table& t, int64_t index,
                                             Ring& ring, int half, int64_t i, int64_t last,
                                             int at) {
  // Read from shared memory once: the copies below are written there too, as the compiler sees it.
  const uint8_t *codes = t.codes + at, *pairs = t.pairs;
  const int64_t rows = t.rows;
  const int code_stride = t.code_stride, pair_stride = t.pair_stride;
  const bool mine = at < t.code_bytes;
  bool bad = false;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t row = *(const Id*)&ring.ids[half][k][threadIdx.x];
    const bool there = i + k < last, good = (uint64_t)row < (uint64_t)rows;
    bad = bad || there && !good;
    copy_async<bytes>(&ring.codes[half][k][threadIdx.x], codes + row * code_stride,
                      there && good && mine);
    copy_async<8>(&ring.pairs[half][k][threadIdx.x], pairs + row * pair_stride, there && good);
  }
  if (p.bags.weights) {
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      copy_async<4>(&ring.weights[half][k][threadIdx.x], (const float*)p.bags.weights + i + k,
                    i + k < last);
  }
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
  ask_for_ids<Id>(p.bags, ring, 0, ids.begin, ids.end);
  ask_for_ids<Id>(p.bags, ring, 1, ids.begin + kRows, ids.end);
  commit_copies();
  wait_for_copies<0>();
  ask_for_rows<bytes, Id>(p, t, index, ring, 0, ids.begin, ids.end, at);
  ask_for_ids<Id>(p.bags, ring, 0, ids.begin + 2 * kRows, ids.end);
  commit_copies();
  int half = 0;
#pragma unroll 1
  for (int64_t i = ids.begin; left > 0; half ^= 1) {
    ask_for_rows<bytes, Id>(p, t, index, ring, half ^ 1, i + kRows, ids.end, at);
    ask_for_ids<Id>(p.bags, ring, half ^ 1, i + 3 * kRows, ids.end);
    commit_copies();
    wait_for_copies<1>();  // the rows of this turn, and the ids of the next turn's rows but one
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
  wait_for_copies<0>();  // zeros behind the last id: they must not land on what comes next
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
// asynchronous copies into its own place in shared memory, and for ids further on, before it adds
// the four rows that have arrived. What is on its way takes no registers, so that a
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

// Neighboring bags that a group takes at once: as many as leave each group on the device four runs,
// so that the first rows of a run, which are waited for, are few among all.
int run_of(const PoolParams& p) {
  const int64_t groups = kPoolResident * multiprocessors() * groups_of(p, kPoolBlock);
  const int64_t run = p.bags.bags * p.set.tables / (4 * groups);
  return (int)(run < 1 ? 1 : run < 32 ? run : 32);
}

}  // namespace

cudaError_t quantized_embedding_bags_launch(const PoolParams& params, cudaStream_t stream) {
  PoolParams p = params;
  p.run = run_of(p);
  const dim3 grid = bag_grid(p, groups_of(p, kPoolBlock) * p.run, kPoolResident);
  return p.set.bits == 8 ? pool_launch<8>(p, grid, stream) : pool_launch<4>(p, grid, stream);
}

}  // namespace lirank::gpu
