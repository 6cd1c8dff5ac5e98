// Single rows, for one instruction set: to codes, and times a gradient.

#include "simd/quantized_embedding_codes.h"

// One row to codes: the written order of operations, no fused multiply-add, so that every
// backend gives the same bits. False where the row, its scale or its mid is not finite.
bool quantize_row(const float* w, int64_t dim, int bits, int8_t* codes, float* scale, float* mid) {
  const float top = bits == 8 ? 127.0f : 7.0f, bottom = -top - 1.0f, steps = top - bottom;
  f32 high = f32::set1(w[0]), low = high, guard = f32::set1(0);
  for (int64_t i = 0; i < dim; i += f32::N) {
    const int64_t left = dim - i < f32::N ? dim - i : f32::N;
    float lane[f32::N];
    for (int j = 0; j < f32::N; ++j) lane[j] = w[i + (j < left ? j : 0)];
    const f32 x = f32::load(lane);
    high = max(high, x);
    low = min(low, x);
    guard = guard + x * f32::set1(0);  // NaN as soon as one value is not finite
  }
  const float hi = lane_max(high), lo = lane_min(low);
  *scale = (hi - lo) / steps;
  *mid = (hi * -bottom + lo * top) / steps;
  const float sum_of_guard = sum(guard);
  if (!(sum_of_guard == 0) || !(*scale - *scale == 0) || !(*mid - *mid == 0)) return false;
  if (*scale == 0) {
    *scale = 1;
    *mid = hi;
    memset(codes, 0, (size_t)dim);
    return true;
  }
  const f32 s = f32::set1(*scale), m = f32::set1(*mid), up = f32::set1(top),
            down = f32::set1(bottom);
  for (int64_t i = 0; i < dim; i += f32::N) {
    const int64_t left = dim - i < f32::N ? dim - i : f32::N;
    const f32 code = max(down, min(up, round_even((f32::load(w + i, left) - m) / s)));
    float lane[f32::N];
    code.store(lane);
    for (int64_t j = 0; j < left; ++j) codes[i + j] = (int8_t)lane[j];
  }
  return true;
}

// <grad, dequantized row>: the gradient of an id's weight.
float row_dot(int bits, const PoolTable& t, int64_t row, const float* grad) {
  float scale, mid;
  read_pair(t.pairs + row * t.pair_stride, scale, mid);
  const uint8_t* codes = t.codes + row * t.code_stride;
  f32 with_codes = f32::set1(0), alone = f32::set1(0);
  for (int64_t c = 0; c < t.dim; c += f32::N) {
    const int64_t left = t.dim - c;
    const f32 g = f32::load(grad + c, left < f32::N ? left : f32::N);
    const f32 code = bits == 8 ? load_codes<8>(codes, c) : load_codes<4>(codes, c);
    with_codes = fma(g, code, with_codes);
    alone = alone + g;
  }
  return scale * sum(with_codes) + mid * sum(alone);
}
