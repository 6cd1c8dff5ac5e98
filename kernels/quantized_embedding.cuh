// Launches of the CUDA kernels on row-wise quantized tables, for the Torch side.
#pragma once
#include <cuda_runtime_api.h>

#include "bags.h"
#include "errors.cuh"

namespace lirank::gpu {

// The tables of one call. If `rows` and `dims` are given (on the device), kernels compute from them
// where each table begins.
struct TableSet {
  const uint8_t* packed = nullptr;
  int64_t bytes = 0;
  const int64_t* rows = nullptr;
  const int64_t* dims = nullptr;
  int64_t tables = 1, one_rows = 0, one_dim = 0, width = 0;  // width: of all together
  int bits = 8;
};

struct PoolParams {
  TableSet set;
  Bags bags;
  Errors* errors;
  void* out;          // (bags, width) of `dtype`; (count,) float for the gradient
  const float* grad;  // (bags, width), for the gradient
  DType dtype;
  int run = 1;  // neighboring bags that a group of lanes takes at once; set by the launch
};

struct RowsParams {
  const float* weight;
  int8_t* codes;
  float *scale, *mid;
  uint8_t* packed;
  int64_t rows, dim;
  int bits;
  float* out;
  unsigned long long* bad;  // lowest bad row, or all ones
  Errors* errors;           // where nobody waits to read `bad`, else null
};

cudaError_t quantized_embedding_bags_launch(const PoolParams& params, cudaStream_t stream);
cudaError_t quantized_embedding_bags_backward_launch(const PoolParams& params, cudaStream_t stream);
cudaError_t quantize_rows_launch(const RowsParams& params, cudaStream_t stream);
cudaError_t dequantize_rows_launch(const RowsParams& params, cudaStream_t stream);
cudaError_t pack_rows_launch(const RowsParams& params, cudaStream_t stream);
cudaError_t unpack_rows_launch(const RowsParams& params, cudaStream_t stream);

}  // namespace lirank::gpu
