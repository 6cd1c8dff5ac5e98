// outer_attention, and the attention inside cross layers, for one instruction set.

#include "simd/cross_lanes.h"
#include "simd/cross_attend.h"
#include "simd/cross_chebyshev.h"

template <typename T>
LR_INLINE void attend_any(const T* q, const T* k, const T* v, int64_t r, int64_t t, T scale, T* out,
                          T* scratch) {
  if (t == 1)
    attend(q, k, v, r, scale, out, scratch);
  else
    attend_tokens(q, k, v, r / t, t, scale, out, scratch);
}

template <typename T>
LR_INLINE void attend_any_backward(const T* g, const T* q, const T* k, const T* v, int64_t r,
                                   int64_t t, T scale, T inverse, T* gq, T* gk, T* gv, T* scratch) {
  if (t == 1)
    attend_backward(g, q, k, v, r, scale, inverse, gq, gk, gv, scratch);
  else
    attend_tokens_backward(g, q, k, v, r / t, t, scale, inverse, gq, gk, gv, scratch);
}

template <typename T>
void CrossAttention<T>::sample(const Layer<T>& layer, const T* h, T* out, T* scratch) {
  const int64_t r = layer.r;
  attend_any(h, h + r, h + 2 * r, r, layer.token_dim, layer.scale, out, scratch);
  if (layer.skip)
    for (int64_t i = 0; i < r; ++i) out[i] += h[2 * r + i];
}

template <typename T>
void CrossAttention<T>::sample_backward(const Layer<T>& layer, const T* h, const T* g, T* dh,
                                        T* scratch) {
  const int64_t r = layer.r;
  attend_any_backward(g, h, h + r, h + 2 * r, r, layer.token_dim, layer.scale, layer.inverse, dh,
                      dh + r, dh + 2 * r, scratch);
  if (layer.skip)
    for (int64_t i = 0; i < r; ++i) dh[2 * r + i] += g[i];
}

template <typename T>
void CrossAttention<T>::rows(const T* q, const T* k, const T* v, int64_t begin, int64_t end,
                             int64_t r, int64_t t, T scale, T* out, T* scratch) {
  for (int64_t b = begin * r; b < end * r; b += r)
    attend_any(q + b, k + b, v + b, r, t, scale, out + b, scratch);
}

template <typename T>
void CrossAttention<T>::rows_backward(const T* g, const T* q, const T* k, const T* v, int64_t begin,
                                      int64_t end, int64_t r, int64_t t, T scale, T inverse, T* gq,
                                      T* gk, T* gv, T* scratch) {
  for (int64_t b = begin * r; b < end * r; b += r)
    attend_any_backward(g + b, q + b, k + b, v + b, r, t, scale, inverse, gq + b, gk + b, gv + b,
                        scratch);
}

template struct CrossAttention<float>;
template struct CrossAttention<double>;
