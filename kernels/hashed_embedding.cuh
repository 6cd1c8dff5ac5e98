// Launches of the CUDA kernels of the hashed embedding, for the Torch side.
#pragma once
#include <cuda_runtime_api.h>

#include "bags.h"
#include "errors.cuh"
#include "hashing_murmur.h"

namespace lirank::gpu {

// quotient_b, remainder_b, quotient_c, remainder_c: of `dtype`, or packed rows where bits > 0.
struct HashedTables {
  const void* base[4];
  int64_t heights[4];
  int64_t row_bytes[4], column_bytes[4];  // from one to the next; packed tables are contiguous
  int64_t dim;
  DType dtype;
  int bits;
};

struct HashedParams {
  HashedTables tables;
  murmur::IdRule rule;
  Bags bags;
  Errors* errors;
  void* out;  // (bags, dim) of `dtype`; for packed tables of `out_dtype`
  DType out_dtype;
  const void* grad;  // (bags, dim) float, or double for float64 tables
};

// One table's gradient. Entry i of the sorted list is the id at `positions[i]`; its row is
// `sorted[i]`.
struct RunsParams {
  Bags bags;
  murmur::IdRule rule;
  int table;               // 0 to 3: whose rows `rows` receives
  int64_t count;           // entries
  uint32_t* rows;          // (count) by position
  int32_t* all_positions;  // (count) 0, 1, 2, ...
  int32_t* bag_of;         // (count) bag of each position, -1 outside every bag
  const uint32_t* sorted;  // (count)
  const int32_t* positions;
  const void* grad;  // (bags, dim) of `dtype`
  void* out;         // dense: (height, dim) of `dtype`, zeros; sparse: a line per row that occurs
  void* partials;    // (chunks, 2, dim), float or double: of runs that cross a chunk
  int64_t dim;
  DType dtype;
  int64_t* starts;  // sparse: (chunks + 1) rows that occur before each chunk; null: dense
  int64_t* found;   // sparse: the rows that occur, rising
  Errors* errors;
};

constexpr int kChunk = 64;  // sorted entries that one group of lanes sums

cudaError_t hashed_embedding_bag_launch(const HashedParams& params, cudaStream_t stream);
cudaError_t hashed_weight_gradient_launch(const HashedParams& params, cudaStream_t stream);
// Fills bag_of; then, for each table: fills rows and all_positions (to be sorted), for sparse
// gradients counts the rows that occur into starts, whose last item is their number, and sums.
cudaError_t hashed_bags_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_rows_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_count_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_runs_launch(const RunsParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
