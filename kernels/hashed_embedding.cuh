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
// `sorted[i] & row_bits`. Tables are sorted in pairs of one kind (b before c), if one more bit of
// their rows tells them apart.
struct RunsParams {
  Bags bags;
  murmur::IdRule rule;
  bool remainders;         // the pair that `rows` receives: of the remainder tables, or quotients
  uint32_t half;           // the bit that marks rows of the second table; 0 if it has none
  uint32_t row_bits;       // the bits of a row
  int64_t count;           // entries of one table
  uint32_t* rows;          // (2, count) by position
  int32_t* all_positions;  // (2, count) 0, 1, 2, ... twice
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

// One table that the sums of its runs move: `runs.out` is the table.
struct UpdateParams {
  RunsParams runs;
  void* sums;        // (height) of row-wise AdaGrad, float or double; null: SGD
  const void* rate;  // the learning rate on the device, float or double; null: `lr`
  double lr, l2, eps;
};

constexpr int kChunk = 64;  // sorted entries that one group of lanes sums

cudaError_t hashed_embedding_bag_launch(const HashedParams& params, cudaStream_t stream);
cudaError_t hashed_weight_gradient_launch(const HashedParams& params, cudaStream_t stream);
// Fills bag_of; then, for each pair of tables: fills rows and all_positions (to be sorted); then,
// for each table: for sparse gradients counts the rows that occur into starts, whose last item is
// their number, and sums, or moves the rows of the table.
cudaError_t hashed_bags_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_rows_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_count_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_runs_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_update_launch(const UpdateParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
