// Vectors of AVX2: see vec.h.

struct f32 {
  using T = float;
  static constexpr int N = 8;
  __m256 v;
  static LR_METHOD f32 set1(float x) { return {_mm256_set1_ps(x)}; }
  static LR_METHOD f32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static LR_METHOD __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static LR_METHOD f32 load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
  static LR_METHOD f32 load(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)))};
  }
  static LR_METHOD f32 load(const int8_t* p, int64_t n) {
    int64_t buffer = 0;
    memcpy(&buffer, p, n < 8 ? n : 8);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(buffer)))};
  }
  LR_METHOD void store(float* p) const { _mm256_storeu_ps(p, v); }
  LR_METHOD void store(float* p, int64_t n) const { _mm256_maskstore_ps(p, mask(n), v); }
};
LR_INLINE f32 operator+(f32 a, f32 b) { return {_mm256_add_ps(a.v, b.v)}; }
LR_INLINE f32 operator-(f32 a, f32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
LR_INLINE f32 operator*(f32 a, f32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
LR_INLINE f32 operator/(f32 a, f32 b) { return {_mm256_div_ps(a.v, b.v)}; }
LR_INLINE f32 fma(f32 a, f32 b, f32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
LR_INLINE f32 fms(f32 a, f32 b, f32 c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }    // ab - c
LR_INLINE f32 fnma(f32 a, f32 b, f32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }  // c - ab
LR_INLINE f32 max(f32 a, f32 b) { return {_mm256_max_ps(a.v, b.v)}; }
LR_INLINE f32 min(f32 a, f32 b) { return {_mm256_min_ps(a.v, b.v)}; }
LR_INLINE f32 round_even(f32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LR_INLINE f32 floor(f32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n in [-150, 128], in two steps so that 2^n itself never overflows
LR_INLINE f32 scale2(f32 a, f32 n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, first), second)};
}
LR_INLINE f32 to_exponent(f32 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23))};
}
LR_INLINE f32 add_bits(f32 a, f32 b) {
  const __m256i x = _mm256_castps_si256(a.v), y = _mm256_castps_si256(b.v);
  return {_mm256_castsi256_ps(_mm256_add_epi32(x, y))};
}
LR_INLINE f32 subtract_bits(f32 a, f32 b) {
  const __m256i x = _mm256_castps_si256(a.v), y = _mm256_castps_si256(b.v);
  return {_mm256_castsi256_ps(_mm256_sub_epi32(x, y))};
}
LR_INLINE f32 gather(const float* p, f32 index) {
  return {_mm256_i32gather_ps(p, _mm256_cvttps_epi32(index.v), 4)};
}
LR_INLINE f32 where_positive(f32 a, f32 b) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_GT_OQ), b.v)};
}
LR_INLINE f32 where_between(f32 a, f32 lo, f32 hi, f32 b) {
  return {_mm256_and_ps(
      _mm256_and_ps(_mm256_cmp_ps(a.v, lo.v, _CMP_GE_OQ), _mm256_cmp_ps(a.v, hi.v, _CMP_LE_OQ)),
      b.v)};
}

struct f64 {
  using T = double;
  static constexpr int N = 4;
  __m256d v;
  static LR_METHOD f64 set1(double x) { return {_mm256_set1_pd(x)}; }
  static LR_METHOD f64 load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static LR_METHOD __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static LR_METHOD f64 load(const double* p, int64_t n) { return {_mm256_maskload_pd(p, mask(n))}; }
  LR_METHOD void store(double* p) const { _mm256_storeu_pd(p, v); }
  LR_METHOD void store(double* p, int64_t n) const { _mm256_maskstore_pd(p, mask(n), v); }
};
LR_INLINE f64 operator+(f64 a, f64 b) { return {_mm256_add_pd(a.v, b.v)}; }
LR_INLINE f64 operator-(f64 a, f64 b) { return {_mm256_sub_pd(a.v, b.v)}; }
LR_INLINE f64 operator*(f64 a, f64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
LR_INLINE f64 operator/(f64 a, f64 b) { return {_mm256_div_pd(a.v, b.v)}; }
LR_INLINE f64 fma(f64 a, f64 b, f64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
LR_INLINE f64 max(f64 a, f64 b) { return {_mm256_max_pd(a.v, b.v)}; }
LR_INLINE f64 min(f64 a, f64 b) { return {_mm256_min_pd(a.v, b.v)}; }
LR_INLINE f64 round_even(f64 a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LR_INLINE f64 floor(f64 a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
LR_INLINE f64 gather(const double* p, f64 index) {
  return {_mm256_i32gather_pd(p, _mm256_cvttpd_epi32(index.v), 8)};
}
LR_INLINE f64 where_positive(f64 a, f64 b) {
  return {_mm256_and_pd(_mm256_cmp_pd(a.v, _mm256_setzero_pd(), _CMP_GT_OQ), b.v)};
}
LR_INLINE f64 where_between(f64 a, f64 lo, f64 hi, f64 b) {
  return {_mm256_and_pd(
      _mm256_and_pd(_mm256_cmp_pd(a.v, lo.v, _CMP_GE_OQ), _mm256_cmp_pd(a.v, hi.v, _CMP_LE_OQ)),
      b.v)};
}

// The reductions of vec.h, in the same order, with the lanes staying in registers.
LR_INLINE float sum(f32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
LR_INLINE float lane_max(f32 a) {
  __m128 x = _mm_max_ps(_mm256_extractf128_ps(a.v, 1), _mm256_castps256_ps128(a.v));
  x = _mm_max_ps(_mm_movehl_ps(x, x), x);
  return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(x), x));
}
LR_INLINE float lane_min(f32 a) {
  __m128 x = _mm_min_ps(_mm256_extractf128_ps(a.v, 1), _mm256_castps256_ps128(a.v));
  x = _mm_min_ps(_mm_movehl_ps(x, x), x);
  return _mm_cvtss_f32(_mm_min_ss(_mm_movehdup_ps(x), x));
}
