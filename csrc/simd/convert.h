// Rows of 16-bit floats to float and back, n numbers in all, for one instruction set.

#include "simd/half_lanes.h"

template <typename Element>
LR_INLINE void widen_elements(const Element* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + f32::N <= n; i += f32::N) load_element(from + i).store(to + i);
  if (i < n) load_element(from + i, n - i).store(to + i, n - i);
}

template <typename Element>
LR_INLINE void narrow_elements(const float* from, int64_t n, Element* to) {
  int64_t i = 0;
  for (; i + f32::N <= n; i += f32::N) store_element(f32::load(from + i), to + i);
  if (i == n) return;
  Element last[f32::N];
  store_element(f32::load(from + i, n - i), last);
  memcpy(to + i, last, (size_t)(n - i) * sizeof(Element));
}

void widen_numbers(const void* from, bool bfloat, int64_t n, float* to) {
  if (bfloat)
    widen_elements((const bfloat_bits*)from, n, to);
  else
    widen_elements((const half_bits*)from, n, to);
}

void narrow_numbers(const float* from, int64_t n, bool bfloat, void* to) {
  if (bfloat)
    narrow_elements(from, n, (bfloat_bits*)to);
  else
    narrow_elements(from, n, (half_bits*)to);
}
