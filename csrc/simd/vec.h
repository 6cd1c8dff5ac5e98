// Vectors of float and double with one interface on every instruction set.
//
// Included once per instruction set inside its namespace (see foreach_isa.h), so there is no
// include guard. Vec<T> has Vec<T>::N lanes; `load(p, n)` and `store(p, n)` touch only the first n
// elements (the others read as 0). Reductions add in one fixed tree, so a result never depends on
// the number of threads.

#if LIRANK_ISA == 512
#include "simd/vec_avx512.h"
#elif LIRANK_ISA == 256
#include "simd/vec_avx2.h"
#else
#include "simd/vec_plain.h"
#endif

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = f32;
};
template <>
struct VecOf<double> {
  using type = f64;
};
template <typename T>
using Vec = typename VecOf<T>::type;

// The first `lanes` elements, which are often all: a masked store costs 20 plain ones on Zen 3.
template <typename V>
LR_INLINE V load_lanes(const typename V::T* p, int64_t lanes) {
  return lanes >= V::N ? V::load(p) : V::load(p, lanes);
}
template <typename V>
LR_INLINE void store_lanes(V x, typename V::T* p, int64_t lanes) {
  if (lanes >= V::N) {
    x.store(p);
  } else {
    x.store(p, lanes);
  }
}

// Reductions: halves are added until one lane is left.
template <typename V>
LR_INLINE typename V::T sum(V a) {
  typename V::T lane[V::N];
  a.store(lane);
  for (int width = V::N / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
template <typename V>
LR_INLINE typename V::T lane_max(V a) {
  typename V::T lane[V::N];
  a.store(lane);
  for (int i = 1; i < V::N; ++i) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
  return lane[0];
}
template <typename V>
LR_INLINE typename V::T lane_min(V a) {
  typename V::T lane[V::N];
  a.store(lane);
  for (int i = 1; i < V::N; ++i) lane[0] = lane[i] < lane[0] ? lane[i] : lane[0];
  return lane[0];
}

// exp for float: 2^n * p(r), |r| <= ln2 / 2, Cephes coefficients; below 2 ulp.
// Underflows to 0 below -104, overflows to inf above 88.73; NaN stays NaN.
LR_INLINE f32 exp(f32 x) {
  const f32 top = f32::set1(89.0f), bottom = f32::set1(-104.0f);
  const f32 c = max(bottom, min(top, x));
  const f32 n = round_even(c * f32::set1(1.44269504088896341f));
  f32 r = fma(n, f32::set1(-0.693359375f), c);
  r = fma(n, f32::set1(2.12194440e-4f), r);
  f32 p = f32::set1(1.9875691500e-4f);
  p = fma(p, r, f32::set1(1.3981999507e-3f));
  p = fma(p, r, f32::set1(8.3334519073e-3f));
  p = fma(p, r, f32::set1(4.1665795894e-2f));
  p = fma(p, r, f32::set1(1.6666665459e-1f));
  p = fma(p, r, f32::set1(5.0000001201e-1f));
  p = fma(p, r * r, r + f32::set1(1.0f));
  return scale2(p, n);
}
LR_INLINE f64 exp(f64 x) {
  double lane[f64::N];
  x.store(lane);
  for (int i = 0; i < f64::N; ++i) lane[i] = __builtin_exp(lane[i]);
  return f64::load(lane);
}
