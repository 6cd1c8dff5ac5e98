// Hashed tables moved by their gradients on the GPU: the step of row-wise AdaGrad or of SGD.
//
// Ids are sorted and their runs summed as for the gradients (hashed_embedding_backward.cu), but the
// sum of a run stays in registers and moves its row. No gradient is written, none is read again,
// and nothing has the size of a table. A warp takes a chunk of 64 sorted entries. The rows of four
// entries are asked for together with the gradients of these, so that a run does not wait for its
// row. The parts of a run that crosses chunks go to `partials`. The join kernel puts their sum
// there too, and then moves the row. Each row is moved by one warp, in one order: the bits do not
// depend on the schedule.
//
// AdaGrad needs the squares of a whole row before it moves a column. Up to 128 columns they are in
// the registers of the warp. Wider rows are summed twice: once for the squares of all runs of the
// chunk, two runs a lane, and once to move them. The second reading of the gradients comes from L2.
//
// Bytes per row that moves: it is read and written, and so is its sum. A row of half precision is
// moved in float32 and rounded once. Not timed yet, nor are eight entries ahead (96 registers, in
// place of 76).
#include "hashed_embedding.cuh"

#include "hashed_runs.cuh"

namespace lirank::gpu {
namespace {

__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }

template <typename Sum>
__device__ inline Sum rate_of(const UpdateParams& u) {
  return u.rate ? *(const Sum*)u.rate : (Sum)u.lr;
}

// Adds a mean of squares to a row's sum, and returns the rate at which the row moves.
template <typename Sum>
__device__ inline Sum next_rate(const UpdateParams& u, Sum lr, int64_t row, Sum old, Sum squares,
                                bool writes) {
  const Sum sum = old + squares / (Sum)u.runs.dim;
  if (writes) ((Sum*)u.sums)[row] = sum;
  return lr / (root(sum) + (Sum)u.eps);
}

// Whether a gradient has a number that is not 0, in the columns of any lane.
template <int columns, typename Sum>
__device__ inline bool any_of(const Sum (&grad)[columns]) {
  bool mine = false;
#pragma unroll
  for (int c = 0; c < columns; ++c) mine = mine || grad[c] != (Sum)0;
  return __ballot_sync(kWarp, mine) != 0;
}

// Adds the penalty's share to a gradient; returns the lane's squares.
template <int columns, typename Sum>
__device__ inline Sum penalize(Sum l2, const Sum (&weight)[columns], Sum (&grad)[columns]) {
  Sum squares = 0;
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    if (l2 != (Sum)0) grad[c] = multiply_add(l2, weight[c], grad[c]);
    squares = multiply_add(grad[c], grad[c], squares);
  }
  return squares;
}

// The runs of a chunk that end in it and began there, by the bits of their last entries.
__device__ inline uint64_t inner_ends(uint64_t heads, int count, bool goes_past, uint64_t* ends) {
  *ends = heads >> 1 | (uint64_t)!goes_past << (count - 1);
  return heads & 1 ? *ends : *ends & (*ends - 1);
}

// weight - rate * grad, in place of the weight.
template <int columns, typename Sum>
__device__ inline void step(Sum rate, const Sum (&grad)[columns], Sum (&weight)[columns]) {
#pragma unroll
  for (int c = 0; c < columns; ++c) weight[c] = weight[c] - rate * grad[c];
}

// What the wide kernel keeps of the runs of a chunk: a lane has those that end at its number and 32
// further on.
template <typename Sum>
struct Measures {
  Sum value[2];  // squares, then rates
  uint64_t moves;
};

template <typename E, int columns, bool packed, bool wide>
__global__ void __launch_bounds__(kBlock, 2) move_runs_kernel(const UpdateParams u) {
  using Sum = SumOf<E>;
  using Columns = Lane<columns, packed>;
  constexpr int kAhead = sizeof(Sum) == 8 ? kRunEntries / 2 : kRunEntries;
  const RunsParams& p = u.runs;
  const int lane = threadIdx.x % 32;
  const int64_t n = p.count, warps = (int64_t)gridDim.x * kWarps, start = Columns::start();
  const Sum lr = rate_of<Sum>(u), l2 = (Sum)u.l2;
  for (int64_t chunk = ((int64_t)blockIdx.x * kBlock + threadIdx.x) / 32; chunk * kChunk < n;
       chunk += warps) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
    const int count = (int)(end - begin);
    const Entries<Sum> entries = read_entries<Sum>(p, begin, end);
    uint64_t ends;
    const uint64_t inner = inner_ends(entries.heads, count, end < n && !is_head(p, end), &ends);
    Sum* parts = (Sum*)p.partials + chunk * 2 * p.dim;
    Measures<Sum> measures{{0, 0}, 0};
    for (int pass = wide ? 0 : 1; pass < 2; ++pass) {
      for (int64_t first = start; first - start < p.dim; first += Columns::kBlockOfColumns) {
        Sum total[columns] = {};
        bool before = !(entries.heads & 1);
#pragma unroll 1
        for (int j = 0; j < count; j += kAhead) {
          Sum grad[kAhead][columns], scale[kAhead];
          Sum weight[kAhead][columns], old[kAhead];
#pragma unroll
          for (int k = 0; k < kAhead; ++k) {
            const int from = (j + k) % 32;
            const int64_t bag = __shfl_sync(kWarp, j < 32 ? entries.bag[0] : entries.bag[1], from);
            scale[k] = __shfl_sync(kWarp, j < 32 ? entries.scale[0] : entries.scale[1], from);
            const int64_t row = __shfl_sync(kWarp, j < 32 ? entries.row[0] : entries.row[1], from);
            Columns::load((const E*)p.grad + bag * p.dim, first, p.dim, bag >= 0, grad[k]);
            const bool moves = inner >> (j + k) & 1;
            Columns::load((const E*)p.out + row * p.dim, first, p.dim,
                          moves && (pass == 1 || l2 != (Sum)0), weight[k]);
            old[k] = !wide && moves && u.sums ? ((const Sum*)u.sums)[row] : (Sum)0;
          }
#pragma unroll
          for (int k = 0; k < kAhead; ++k) {
            const int at = j + k;
            if (at >= count) break;
#pragma unroll
            for (int c = 0; c < columns; ++c)
              total[c] = multiply_add(grad[k][c], scale[k], total[c]);
            const bool stops = ends >> at & 1;
            if (!stops && at + 1 < count) continue;
            if (!(inner >> at & 1)) {  // a part: the run goes on, or was there before the chunk
              if (pass == 1) Columns::store(total, parts + (before ? 0 : p.dim), first, p.dim);
            } else if (wide) {
              if (pass == 0 && any_of(total)) measures.moves |= (uint64_t)1 << at;
              const Sum squares = penalize(l2, weight[k], total);
              if (pass == 0) {
                const Sum whole = warp_sum(squares);
                measures.value[0] += lane == at ? whole : (Sum)0;
                measures.value[1] += lane + 32 == at ? whole : (Sum)0;
              } else {
                const Sum rate =
                    __shfl_sync(kWarp, at < 32 ? measures.value[0] : measures.value[1], at % 32);
                const int64_t row =
                    __shfl_sync(kWarp, at < 32 ? entries.row[0] : entries.row[1], at % 32);
                if (measures.moves >> at & 1) {
                  step(rate, total, weight[k]);
                  Columns::store(weight[k], (E*)p.out + row * p.dim, first, p.dim);
                }
              }
            } else if (any_of(total)) {
              const int64_t row =
                  __shfl_sync(kWarp, at < 32 ? entries.row[0] : entries.row[1], at % 32);
              const Sum squares = penalize(l2, weight[k], total);
              const Sum rate =
                  u.sums ? next_rate(u, lr, row, old[k], warp_sum(squares), lane == 0) : lr;
              step(rate, total, weight[k]);
              Columns::store(weight[k], (E*)p.out + row * p.dim, first, p.dim);
            }
            before = false;
#pragma unroll
            for (int c = 0; c < columns; ++c) total[c] = 0;
          }
        }
      }
      if (wide && pass == 0) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (measures.moves >> (h * 32 + lane) & 1) {
            const int64_t row = entries.row[h];
            measures.value[h] =
                u.sums ? next_rate(u, lr, row, ((const Sum*)u.sums)[row], measures.value[h], true)
                       : lr;
          }
      }
    }
  }
}

// A row by the sum of its run, of which each lane reads what it has written; one warp.
template <typename E>
__device__ inline void move_row(const UpdateParams& u, int64_t row, const SumOf<E>* sum) {
  using Sum = SumOf<E>;
  const int lane = threadIdx.x % 32;
  const int64_t dim = u.runs.dim;
  E* table = (E*)u.runs.out + row * dim;
  const Sum l2 = (Sum)u.l2;
  Sum rate = rate_of<Sum>(u), squares = 0, weight[kJoinColumns], grad[kJoinColumns];
  bool moves = false;
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t first = lane; first - lane < dim; first += JoinLane::kBlockOfColumns) {
      JoinLane::load(sum, first, dim, true, grad);
      moves = any_of(grad) || moves;
      JoinLane::load(table, first, dim, true, weight);
      squares += penalize(l2, weight, grad);
      if (pass == 1) {
        step(rate, grad, weight);
        JoinLane::store(weight, table, first, dim);
      }
    }
    if (!moves) return;
    if (pass == 0 && u.sums) {
      const Sum old = ((const Sum*)u.sums)[row];
      const Sum whole = warp_sum(squares);  // now every lane has read the old sum
      rate = next_rate(u, rate, row, old, whole, lane == 0);
    }
  }
}

// Moves the rows of runs that cross chunks. The sum of a run replaces its last part in the chunk
// where it begins.
template <typename E>
__global__ void __launch_bounds__(kBlock, 2) join_and_move_kernel(const UpdateParams u) {
  using Sum = SumOf<E>;
  const RunsParams& p = u.runs;
  const auto own = [&](int64_t chunk) { return (Sum*)p.partials + (chunk * 2 + 1) * p.dim; };
  join_runs<Sum>(
      p,
      [&](int64_t chunk, int64_t first, Sum(&total)[kJoinColumns]) {
        JoinLane::store(total, own(chunk), first, p.dim);
      },
      [&](int64_t chunk) { move_row<E>(u, last_row(p, chunk), own(chunk)); });
}

template <typename E>
cudaError_t move_rows(const UpdateParams& u, cudaStream_t stream) {
  const int64_t chunks = (u.runs.count + kChunk - 1) / kChunk;
  const dim3 grid(blocks_for(chunks, kWarps));
  const int64_t dim = u.runs.dim;
  const cudaError_t status =
      launch(dim > 128                          ? move_runs_kernel<E, 4, false, true>
             : dim <= 64 && packs<E, 2>(u.runs) ? move_runs_kernel<E, 2, true, false>
             : packs<E, 4>(u.runs)              ? move_runs_kernel<E, 4, true, false>
                                                : move_runs_kernel<E, 4, false, false>,
             grid, stream, u);
  return status == cudaSuccess ? launch(join_and_move_kernel<E>, grid, stream, u) : status;
}

}  // namespace

cudaError_t hashed_update_launch(const UpdateParams& u, cudaStream_t stream) {
  switch (u.runs.dtype) {
    case DType::float64:
      return move_rows<double>(u, stream);
    case DType::float16:
      return move_rows<__half>(u, stream);
    case DType::bfloat16:
      return move_rows<__nv_bfloat16>(u, stream);
    default:
      return move_rows<float>(u, stream);
  }
}

}  // namespace lirank::gpu
