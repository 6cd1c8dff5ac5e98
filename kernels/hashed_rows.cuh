// Helpers of the hashed embedding's kernels: the rows of an id, and sums for four dtypes.
#pragma once
#include <type_traits>

#include "hashed_embedding.cuh"
#include "launch.cuh"

namespace lirank::gpu {

struct FourRows {
  uint32_t row[4];  // tables have at most 2^32 rows
};

__device__ inline FourRows rows_of(const murmur::IdRule& rule, const Bags& b, int64_t i) {
  const uint64_t id = (uint64_t)((const int64_t*)b.ids)[i];
  const murmur::Rows r =
      murmur::rows_of(rule.prehashed ? id : murmur::hash_id(id, rule.seed), rule.rows);
  return {{r.quotient_b, r.remainder_b, r.quotient_c, r.remainder_c}};
}

// Elements of float64 tables are summed in float64, all others in float32.
template <typename E>
using SumOf = std::conditional_t<std::is_same_v<E, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) {
  return __uint_as_float((uint32_t)__bfloat16_as_ushort(x) << 16);
}

__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

}  // namespace lirank::gpu
