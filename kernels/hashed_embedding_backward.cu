// Gradients of the hashed tables on the GPU.
//
// For each table the ids are sorted by row, and each run of ids with the same row is summed. The
// sort is stable, so positions rise within a run. The 1,000 remainder rows, which every id hits,
// therefore need no atomics, and the bits of the result do not depend on the schedule. A warp sums
// a chunk of 64 sorted entries. A run inside a chunk is written at once. The parts of runs that
// cross chunks go to `partials`: first the run that began before the chunk, then the run that
// continues after it. A second kernel adds them in order. Gradients are read and written in the
// dtype of the tables. They are summed in float32, or in float64 for float64 tables. For a sparse
// gradient the runs are numbered: their heads are counted per chunk, and one block adds up the
// counts.
//
// Tables are sorted in pairs: both quotient tables, then both remainder tables. One more bit of the
// rows tells the two apart, unless it would cost a pass (hashed_embedding_sort_cuda.h).
//
// Workspace in addition to the results: 20 bytes per id (its rows in two tables, its position twice
// and its bag), 16 for the sorted lists, about as much again for CUB's radix sort, and dim / 8
// bytes of float32 partials. That is 64 bytes per id at dim 96, for tables of any size. Hashes are
// computed for each pair of tables, at 60 instructions per id. Storing them would take 8 more
// bytes. Bytes per id and table: the sort (2 or 3 passes over 8 bytes), 12 for the entry, and the
// gradient of its bag, which comes from L2. If one row has most of millions of ids, one block sums
// it at the end.
//
// Measured on an H100 with 1,048,560 ids in bags of 20, D = 64 and tables of 1,000,000 rows, zeros
// included: 1.05 ms, and 1.14 ms if one id makes up a tenth of all, before tables were sorted in
// pairs and before lanes took columns side by side.
// Side by side, one load an entry and lane is left of four, and 62 registers of 71, by SASS; not
// timed yet. Not timed yet either: eight entries ahead (76 registers), and zeros only where no id
// has the row.
// Tried and dropped there: PyTorch's sort (1.20 and 1.28 ms); one entry at a time, and one warp for
// all parts of a row (1.24 and 4.32 ms).
// Tried and dropped on the CPU: private copies of the remainder tables. At D = 128 they take 512 KB
// each, which is more than shared memory has.
#include "hashed_embedding.cuh"

#include "hashed_runs.cuh"

namespace lirank::gpu {
namespace {

// The bag of every id that is in one; a warp a bag.
__global__ void __launch_bounds__(kBlock) list_bags_kernel(const RunsParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = (int64_t)gridDim.x * (kBlock / 32);
  for (int64_t bag = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; bag < p.bags.bag_count;
       bag += warps) {
    const Range ids = range_of(p.bags, bag, p.errors, lane == 0);
    for (int64_t i = ids.begin + lane; i < ids.end && i < p.count; i += 32)
      p.bag_of[i] = (int32_t)bag;
  }
}

// Every id's rows in the two tables of one kind; also of ids outside every bag, which add nothing
// there.
__global__ void __launch_bounds__(kBlock) list_rows_kernel(const RunsParams p) {
  const int64_t threads = (int64_t)gridDim.x * kBlock;
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < p.count; i += threads) {
    const FourRows r = rows_of(p.rule, p.bags, i);
    p.rows[i] = p.remainders ? r.row[1] : r.row[0];
    p.rows[p.count + i] = (p.remainders ? r.row[3] : r.row[2]) | p.half;
    p.all_positions[i] = p.all_positions[p.count + i] = (int32_t)i;
  }
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

// One warp a chunk; 32 lanes of columns at a time. Each lane looks up two entries, which go round
// by shuffle, and the gradients of several entries are asked for before the first is added.
template <typename E, int columns, bool packed>
__global__ void __launch_bounds__(kBlock, 2) sum_runs_kernel(const RunsParams p) {
  using Sum = SumOf<E>;
  using Columns = Lane<columns, packed>;
  const int64_t n = p.count, warps = (int64_t)gridDim.x * kWarps, start = Columns::start();
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; chunk * kChunk < n;
       chunk += warps) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
    const int count = (int)(end - begin);
    const Entries<Sum> entries = read_entries<Sum>(p, begin, end);
    const bool goes_past = end < n && !is_head(p, end);
    Sum* parts = (Sum*)p.partials + chunk * 2 * p.dim;
    for (int64_t first = start; first - start < p.dim; first += Columns::kBlockOfColumns) {
      Sum total[columns] = {};
      bool before = !(entries.heads & 1);
      int64_t line = p.starts ? p.starts[chunk] - 1 : 0;
#pragma unroll 1
      for (int j = 0; j < count; j += kRunEntries) {
        Sum grad[kRunEntries][columns], scale[kRunEntries];
#pragma unroll
        for (int k = 0; k < kRunEntries; ++k) {
          const int from = (j + k) % 32;
          const int64_t bag = __shfl_sync(kWarp, j < 32 ? entries.bag[0] : entries.bag[1], from);
          scale[k] = __shfl_sync(kWarp, j < 32 ? entries.scale[0] : entries.scale[1], from);
          Columns::load((const E*)p.grad + bag * p.dim, first, p.dim, bag >= 0, grad[k]);
        }
#pragma unroll
        for (int k = 0; k < kRunEntries; ++k) {
          const int at = j + k;
          if (at >= count) break;
          if (p.starts && entries.heads >> at & 1) {
            ++line;
            if (first == 0) p.found[line] = p.sorted[begin + at] & p.row_bits;
          }
#pragma unroll
          for (int c = 0; c < columns; ++c) total[c] = multiply_add(grad[k][c], scale[k], total[c]);
          const bool last = at + 1 == count;
          const bool goes_on = last ? goes_past : !(entries.heads >> (at + 1) & 1);
          if (goes_on && !last) continue;
          if (before || goes_on) {
            Columns::store(total, parts + (before ? 0 : p.dim), first, p.dim);
          } else {
            const int64_t row = p.starts ? line : (int64_t)(p.sorted[begin + at] & p.row_bits);
            Columns::store(total, (E*)p.out + row * p.dim, first, p.dim);
          }
          before = false;
#pragma unroll
          for (int c = 0; c < columns; ++c) total[c] = 0;
        }
      }
    }
  }
}

// Joins the parts of runs that cross chunks.
template <typename E>
__global__ void __launch_bounds__(kBlock, sizeof(SumOf<E>) == 8 ? 2 : 4)
    join_runs_kernel(const RunsParams p) {
  using Sum = SumOf<E>;
  join_runs<Sum>(
      p,
      [&](int64_t chunk, int64_t first, Sum(&total)[kJoinColumns]) {
        const int64_t row = p.starts ? p.starts[chunk + 1] - 1 : last_row(p, chunk);
        JoinLane::store(total, (E*)p.out + row * p.dim, first, p.dim);
      },
      [](int64_t) {});
}

// ---- launches --------------------------------------------------------------------------

template <typename E>
cudaError_t sum_runs(const RunsParams& p, cudaStream_t stream) {
  const int64_t chunks = (p.count + kChunk - 1) / kChunk;
  const dim3 grid(blocks_for(chunks, kWarps));
  const bool narrow = p.dim <= 64 && packs<E, 2>(p);
  const cudaError_t status = launch(narrow           ? sum_runs_kernel<E, 2, true>
                                    : packs<E, 4>(p) ? sum_runs_kernel<E, 4, true>
                                                     : sum_runs_kernel<E, 4, false>,
                                    grid, stream, p);
  return status == cudaSuccess ? launch(join_runs_kernel<E>, grid, stream, p) : status;
}

}  // namespace

cudaError_t hashed_bags_launch(const RunsParams& p, cudaStream_t stream) {
  return launch(list_bags_kernel, dim3(blocks_for(p.bags.bag_count, kBlock / 32)), stream, p);
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
  switch (p.dtype) {
    case DType::float64:
      return sum_runs<double>(p, stream);
    case DType::float16:
      return sum_runs<__half>(p, stream);
    case DType::bfloat16:
      return sum_runs<__nv_bfloat16>(p, stream);
    default:
      return sum_runs<float>(p, stream);
  }
}

}  // namespace lirank::gpu
