// Conversions of single 16-bit floats. Use these where a value stands alone, and
// simd/half_lanes.h for vectors.
#pragma once
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

namespace lirank {

inline float widen_half(uint16_t bits) { return c10::detail::fp16_ieee_to_fp32_value(bits); }
inline uint16_t narrow_half(float x) { return c10::detail::fp16_ieee_from_fp32_value(x); }

inline float widen_bfloat(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

// Rounds to the nearest, ties to even. NaN stays NaN.
inline uint16_t narrow_bfloat(float x) {
  if (x != x) return 0x7fc0;
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace lirank
