// Kernels of isotonic calibration, see simd/isotonic.h.
#pragma once
#include "library/dispatch.h"

#include <cstdint>

namespace lirank {

LIRANK_EACH_ISA(template <typename T> struct Isotonic {
  static void calibrate(const T* x, int64_t n, const T* prefix, const T* slope, int64_t buckets,
                        T lower, T step, T* out);
  static void calibrate_backward(const T* grad, const T* x, int64_t n, const T* slope,
                                 int64_t buckets, T lower, T step, T* grad_x, double* counts,
                                 double* parts);
  static void calibrate_rows(const T* x, const T* e, const T* w, int64_t begin, int64_t end,
                             int64_t buckets, T base, T lower, T step, T* out);
  static void calibrate_rows_backward(const T* g, const T* x, const T* e, const T* w, int64_t begin,
                                      int64_t end, int64_t buckets, T lower, T step, T* grad_x,
                                      T* grad_e, T* sums);
};)

}  // namespace lirank
