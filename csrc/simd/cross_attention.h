// outer_attention over rows (B, r), for one instruction set.

#include "simd/cross_lanes.h"
#include "simd/cross_attend.h"
#include "simd/cross_chebyshev.h"

#define LR_ATTENTION(V, T)                                                                        \
  static void attend_rows(const T* q, const T* k, const T* v, int64_t begin, int64_t end,         \
                          int64_t r, int64_t t, T scale, T* out, T* scratch) {                    \
    for (int64_t b = begin * r; b < end * r; b += r) {                                            \
      if (t == 1)                                                                                 \
        attend<V>(q + b, k + b, v + b, r, scale, out + b, scratch);                               \
      else                                                                                        \
        attend_tokens<V>(q + b, k + b, v + b, r / t, t, scale, out + b, scratch);                 \
    }                                                                                             \
  }                                                                                               \
  static void attend_rows_backward(const T* g, const T* q, const T* k, const T* v, int64_t begin, \
                                   int64_t end, int64_t r, int64_t t, T scale, T inverse, T* gq,  \
                                   T* gk, T* gv, T* scratch) {                                    \
    for (int64_t b = begin * r; b < end * r; b += r) {                                            \
      if (t == 1)                                                                                 \
        attend_backward<V>(g + b, q + b, k + b, v + b, r, scale, inverse, gq + b, gk + b, gv + b, \
                           scratch);                                                              \
      else                                                                                        \
        attend_tokens_backward<V>(g + b, q + b, k + b, v + b, r / t, t, scale, inverse, gq + b,   \
                                  gk + b, gv + b, scratch);                                       \
    }                                                                                             \
  }                                                                                               \
  static int64_t attend_scratch(const T*, int64_t r, int64_t t) { return attention_scratch(r, t); }
LR_ATTENTION(f32, float)
LR_ATTENTION(f64, double)
#undef LR_ATTENTION
