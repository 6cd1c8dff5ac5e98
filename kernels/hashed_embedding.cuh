// CUDA kernels of the hashed embedding, as the Torch side calls them.
#pragma once
#include <cuda_runtime_api.h>

#include "bags.cuh"
#include "errors.cuh"
#include "murmur.h"

namespace lirank::gpu {

// quotient_b, remainder_b, quotient_c, remainder_c: of `element`, or packed rows where bits > 0.
struct HashedTables {
  const void* base[4];
  int64_t heights[4];
  int64_t dim;
  Element element;
  int bits;
};

// Where rows come from: the hash of an id, or (to measure what hashing costs) as given.
struct HashedSource {
  murmur::RowRule rule;
  uint32_t seed;
  bool prehashed;
  const int64_t* rows[4];  // null: from the ids
};

struct HashedParams {
  HashedTables tables;
  HashedSource source;
  Bags bags;
  Errors* errors;
  void* out;  // (bags, dim) of `element`; for packed tables of `out_element`
  Element out_element;
  const void* grad;  // (bags, dim) float, or double for float64 tables
};

// One table's gradient. `rows[i]` is the row of sorted entry i, `positions[i]` its id.
struct RunsParams {
  Bags bags;
  HashedSource source;
  const int32_t* rows;
  const int64_t* positions;
  int32_t* row_of[4];  // row of each position in each table
  int32_t* bag_of;     // bag of each position, -1 outside every bag
  const void* grad;
  void* out;       // (height, dim), zeros
  void* partials;  // (chunks, 2, dim): of runs that cross a chunk
  int64_t dim;
  bool wide;  // float64
  Errors* errors;
};

constexpr int kChunk = 64;  // sorted entries that one group of lanes sums

cudaError_t hashed_embedding_bag_launch(const HashedParams& params, cudaStream_t stream);
cudaError_t hashed_weight_gradient_launch(const HashedParams& params, cudaStream_t stream);
cudaError_t hashed_rows_launch(const RunsParams& params, cudaStream_t stream);
cudaError_t hashed_runs_launch(const RunsParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
