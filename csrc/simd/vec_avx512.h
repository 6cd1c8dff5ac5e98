// Vectors of AVX-512: see vec.h.

struct f32 {
  using T = float;
  static constexpr int N = 16;
  __m512 v;
  static LR_METHOD f32 set1(float x) { return {_mm512_set1_ps(x)}; }
  static LR_METHOD f32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static LR_METHOD __mmask16 mask(int64_t n) { return (__mmask16)_bzhi_u32(0xffffu, (unsigned)n); }
  static LR_METHOD f32 load(const float* p, int64_t n) {
    return {_mm512_maskz_loadu_ps(mask(n), p)};
  }
  static LR_METHOD f32 load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
  }
  static LR_METHOD f32 load(const int8_t* p, int64_t n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask(n), p)))};
  }
  LR_METHOD void store(float* p) const { _mm512_storeu_ps(p, v); }
  LR_METHOD void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
};
LR_INLINE f32 operator+(f32 a, f32 b) { return {_mm512_add_ps(a.v, b.v)}; }
LR_INLINE f32 operator-(f32 a, f32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LR_INLINE f32 operator*(f32 a, f32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LR_INLINE f32 operator/(f32 a, f32 b) { return {_mm512_div_ps(a.v, b.v)}; }
LR_INLINE f32 fma(f32 a, f32 b, f32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LR_INLINE f32 fms(f32 a, f32 b, f32 c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
LR_INLINE f32 fnma(f32 a, f32 b, f32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
LR_INLINE f32 max(f32 a, f32 b) { return {_mm512_max_ps(a.v, b.v)}; }
LR_INLINE f32 min(f32 a, f32 b) { return {_mm512_min_ps(a.v, b.v)}; }
LR_INLINE f32 round_even(f32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LR_INLINE f32 floor(f32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
LR_INLINE f32 scale2(f32 a, f32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Low bits into the exponent, and bits added or subtracted as whole numbers.
LR_INLINE f32 to_exponent(f32 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}
LR_INLINE f32 add_bits(f32 a, f32 b) {
  const __m512i x = _mm512_castps_si512(a.v), y = _mm512_castps_si512(b.v);
  return {_mm512_castsi512_ps(_mm512_add_epi32(x, y))};
}
LR_INLINE f32 subtract_bits(f32 a, f32 b) {
  const __m512i x = _mm512_castps_si512(a.v), y = _mm512_castps_si512(b.v);
  return {_mm512_castsi512_ps(_mm512_sub_epi32(x, y))};
}
LR_INLINE f32 gather(const float* p, f32 index) {
  return {_mm512_i32gather_ps(_mm512_cvttps_epi32(index.v), p, 4)};
}
// a > 0 ? b : 0
LR_INLINE f32 where_positive(f32 a, f32 b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v)};
}
// lo <= a <= hi ? b : 0
LR_INLINE f32 where_between(f32 a, f32 lo, f32 hi, f32 b) {
  return {_mm512_maskz_mov_ps(
      _mm512_cmp_ps_mask(a.v, lo.v, _CMP_GE_OQ) & _mm512_cmp_ps_mask(a.v, hi.v, _CMP_LE_OQ), b.v)};
}

struct f64 {
  using T = double;
  static constexpr int N = 8;
  __m512d v;
  static LR_METHOD f64 set1(double x) { return {_mm512_set1_pd(x)}; }
  static LR_METHOD f64 load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static LR_METHOD __mmask8 mask(int64_t n) { return (__mmask8)_bzhi_u32(0xffu, (unsigned)n); }
  static LR_METHOD f64 load(const double* p, int64_t n) {
    return {_mm512_maskz_loadu_pd(mask(n), p)};
  }
  LR_METHOD void store(double* p) const { _mm512_storeu_pd(p, v); }
  LR_METHOD void store(double* p, int64_t n) const { _mm512_mask_storeu_pd(p, mask(n), v); }
};
LR_INLINE f64 operator+(f64 a, f64 b) { return {_mm512_add_pd(a.v, b.v)}; }
LR_INLINE f64 operator-(f64 a, f64 b) { return {_mm512_sub_pd(a.v, b.v)}; }
LR_INLINE f64 operator*(f64 a, f64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
LR_INLINE f64 operator/(f64 a, f64 b) { return {_mm512_div_pd(a.v, b.v)}; }
LR_INLINE f64 fma(f64 a, f64 b, f64 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
LR_INLINE f64 max(f64 a, f64 b) { return {_mm512_max_pd(a.v, b.v)}; }
LR_INLINE f64 min(f64 a, f64 b) { return {_mm512_min_pd(a.v, b.v)}; }
LR_INLINE f64 round_even(f64 a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LR_INLINE f64 floor(f64 a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
LR_INLINE f64 scale2(f64 a, f64 n) { return {_mm512_scalef_pd(a.v, n.v)}; }
LR_INLINE f64 gather(const double* p, f64 index) {
  return {_mm512_i32gather_pd(_mm512_cvttpd_epi32(index.v), p, 8)};
}
LR_INLINE f64 where_positive(f64 a, f64 b) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(a.v, _mm512_setzero_pd(), _CMP_GT_OQ), b.v)};
}
LR_INLINE f64 where_between(f64 a, f64 lo, f64 hi, f64 b) {
  return {_mm512_maskz_mov_pd((__mmask8)(_mm512_cmp_pd_mask(a.v, lo.v, _CMP_GE_OQ) &
                                         _mm512_cmp_pd_mask(a.v, hi.v, _CMP_LE_OQ)),
                              b.v)};
}
