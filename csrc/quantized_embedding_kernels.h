// Pooling and quantizing rows, for one instruction set.
//
// A look-up beyond the cache is bound by cache lines touched: code_bytes / 64 + 1 a row where
// codes and pairs lie apart, about row_bytes / 64 + 1 otherwise. Both lines are prefetched
// kAhead ids before they are used; the check of the id is part of that pass, so a row is never
// touched before its id is known to be good. pooled = sum_i scale_i * code_i + sum_i mid_i.
//
// Codes of a row are converted 16 (AVX-512) or 8 (AVX2) at a time; the accumulators of a block
// of 4 vectors stay in registers over the whole bag, wider rows take several blocks.

constexpr int64_t kAhead = 16;

struct PoolTable {
  const uint8_t* codes;
  const uint8_t* pairs;
  int64_t code_stride, pair_stride, rows, dim;
};

LR_INLINE f32 load_codes8(const uint8_t* codes, int64_t column, int64_t left) {
  const int8_t* p = (const int8_t*)codes + column;
  return left >= f32::N ? f32::load(p) : f32::load(p, left);
}

LR_INLINE f32 load_codes4(const uint8_t* codes, int64_t column, int64_t left) {
#if LIRANK_ISA == 512
  uint64_t word;  // a row's codes are padded to 8 bytes: never past them
  memcpy(&word, codes + column / 2, 8);
  (void)left;
  const __m128i both = _mm_cvtsi64_si128((long long)word);
  const __m128i low = _mm_and_si128(both, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
  const __m128i all = _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(all))};
#else
  const int64_t lanes = left < f32::N ? left : f32::N;
  int8_t plain[f32::N];
  for (int64_t i = 0; i < f32::N; ++i) {
    const uint8_t byte = i < lanes ? codes[(column + i) / 2] : 0x88;
    plain[i] = (int8_t)((((column + i) & 1) ? byte >> 4 : byte & 15) - 8);
  }
  return f32::load(plain);
#endif
}

template <int bits>
LR_INLINE f32 load_codes(const uint8_t* codes, int64_t column, int64_t left) {
  if constexpr (bits == 8) return load_codes8(codes, column, left);
  return load_codes4(codes, column, left);
}

LR_INLINE void read_pair(const PoolTable& t, int64_t row, float& scale, float& mid) {
  memcpy(&scale, t.pairs + row * t.pair_stride, 4);
  memcpy(&mid, t.pairs + row * t.pair_stride + 4, 4);
}

template <typename Index>
LR_INLINE bool prefetch_row(const PoolTable& t, const Index* ids, int64_t at) {
  const int64_t row = (int64_t)ids[at];
  if (row < 0 || row >= t.rows) return false;
  const uint8_t* codes = t.codes + row * t.code_stride;
  for (int64_t b = 0; b < t.code_stride; b += 64) __builtin_prefetch(codes + b);
  __builtin_prefetch(t.pairs + row * t.pair_stride);
  return true;
}

// One bag, `blocks` vectors of columns from `first` on. All ids were checked before.
template <int bits, int blocks, typename Index>
LR_INLINE void pool_columns(const PoolTable& t, const Index* ids, const float* weights,
                            int64_t begin, int64_t end, float divide, int64_t first, float* out) {
  f32 total[blocks];
  for (int b = 0; b < blocks; ++b) total[b] = f32::set1(0);
  float mids = 0;
  for (int64_t i = begin; i < end; ++i) {
    float scale, mid;
    read_pair(t, (int64_t)ids[i], scale, mid);
    if (weights) scale *= weights[i], mid *= weights[i];
    mids += mid;
    const uint8_t* codes = t.codes + (int64_t)ids[i] * t.code_stride;
    const f32 s = f32::set1(scale);
    for (int b = 0; b < blocks; ++b) {
      const int64_t column = first + b * f32::N;
      if (column < t.dim)
        total[b] = fma(load_codes<bits>(codes, column, t.dim - column), s, total[b]);
    }
  }
  const f32 m = f32::set1(mids), d = f32::set1(divide);
  for (int b = 0; b < blocks; ++b) {
    const int64_t column = first + b * f32::N, left = t.dim - column;
    const f32 pooled = (total[b] + m) * d;
    if (left >= f32::N) {
      pooled.store(out + column);
    } else if (left > 0) {
      pooled.store(out + column, left);
    }
  }
}

// Bags [from, to); returns the position of the first bad id, or -1. `checked` runs ahead of the
// bag being pooled by at least its own length and kAhead ids.
template <int bits, typename Index, typename Offset>
LR_INLINE int64_t pool_range(const PoolTable& t, const Index* ids, const Offset* offsets,
                             int64_t offset_count, int64_t from, int64_t to, int64_t count,
                             int64_t fixed, const float* weights, bool mean, float* out,
                             int64_t out_stride) {
  int64_t checked = -1;
  const auto start = [&](int64_t bag) {
    if (fixed > 0) return bag * fixed;
    return bag < offset_count ? (int64_t)offsets[bag] : count;
  };
  const int64_t limit = start(to);
  for (int64_t bag = from; bag < to; ++bag) {
    const int64_t begin = start(bag), end = start(bag + 1);
    if (checked < begin) checked = begin;
    int64_t goal = end + kAhead < limit ? end + kAhead : limit;
    for (; checked < goal; ++checked)
      if (!prefetch_row(t, ids, checked)) return checked;
    const float divide = mean && end > begin ? 1.0f / (float)(end - begin) : 1.0f;
    float* row = out + bag * out_stride;
    int64_t column = 0;
    for (; t.dim - column > 2 * f32::N; column += 4 * f32::N)
      pool_columns<bits, 4>(t, ids, weights, begin, end, divide, column, row);
    for (; column < t.dim; column += 2 * f32::N)
      pool_columns<bits, 2>(t, ids, weights, begin, end, divide, column, row);
  }
  return -1;
}

#define LR_POOL(name, Index, Offset)                                                         \
  static int64_t name(int bits, const PoolTable& t, const Index* ids, const Offset* offsets, \
                      int64_t offset_count, int64_t from, int64_t to, int64_t count,         \
                      int64_t fixed, const float* weights, bool mean, float* out,            \
                      int64_t out_stride) {                                                  \
    return bits == 8 ? pool_range<8>(t, ids, offsets, offset_count, from, to, count, fixed,  \
                                     weights, mean, out, out_stride)                         \
                     : pool_range<4>(t, ids, offsets, offset_count, from, to, count, fixed,  \
                                     weights, mean, out, out_stride);                        \
  }
LR_POOL(pool, int32_t, int32_t)
LR_POOL(pool, int32_t, int64_t)
LR_POOL(pool, int64_t, int32_t)
LR_POOL(pool, int64_t, int64_t)
#undef LR_POOL

// <grad, dequantized row>: the gradient of an id's weight.
static float row_dot(int bits, const PoolTable& t, int64_t row, const float* grad) {
  float scale, mid;
  read_pair(t, row, scale, mid);
  const uint8_t* codes = t.codes + row * t.code_stride;
  f32 with_codes = f32::set1(0), alone = f32::set1(0);
  for (int64_t c = 0; c < t.dim; c += f32::N) {
    const int64_t left = t.dim - c;
    const f32 g = f32::load(grad + c, left < f32::N ? left : f32::N);
    const f32 code = bits == 8 ? load_codes<8>(codes, c, left) : load_codes<4>(codes, c, left);
    with_codes = fma(g, code, with_codes);
    alone = alone + g;
  }
  return scale * sum(with_codes) + mid * sum(alone);
}

// One row to codes: the written order of operations, no fused multiply-add, so that every
// backend gives the same bits. False where the row, its scale or its mid is not finite.
static bool quantize_row(const float* w, int64_t dim, int bits, int8_t* codes, float* scale,
                         float* mid) {
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
