// Vectors of 16-bit floats to vectors of float and back, for one instruction set.
//
// load_element takes a pointer to any element type; 16-bit floats come as vectors of float.

struct half_bits {
  uint16_t bits;
};
struct bfloat_bits {
  uint16_t bits;
};

template <typename T>
LR_INLINE Vec<T> load_element(const T* p) {
  return Vec<T>::load(p);
}
template <typename T>
LR_INLINE Vec<T> load_element(const T* p, int64_t n) {
  return Vec<T>::load(p, n);
}

#if LIRANK_ISA == 512
LR_INLINE f32 load_element(const half_bits* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
LR_INLINE f32 load_element(const bfloat_bits* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
#elif LIRANK_ISA == 256
LR_INLINE f32 load_element(const half_bits* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))};
}
LR_INLINE f32 load_element(const bfloat_bits* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
#else
LR_INLINE f32 load_element(const half_bits* p) {
  float lane[f32::N];
  for (int i = 0; i < f32::N; ++i) lane[i] = ::lirank::widen_half(p[i].bits);
  return f32::load(lane);
}
LR_INLINE f32 load_element(const bfloat_bits* p) {
  float lane[f32::N];
  for (int i = 0; i < f32::N; ++i) lane[i] = ::lirank::widen_bfloat(p[i].bits);
  return f32::load(lane);
}
#endif

// The first n of a vector of 16-bit elements; never reads past them.
LR_INLINE f32 load_element(const half_bits* p, int64_t n) {
  half_bits lane[f32::N] = {};
  memcpy(lane, p, (size_t)n * sizeof(half_bits));
  return load_element(lane);
}
LR_INLINE f32 load_element(const bfloat_bits* p, int64_t n) {
  bfloat_bits lane[f32::N] = {};
  memcpy(lane, p, (size_t)n * sizeof(bfloat_bits));
  return load_element(lane);
}

// A vector to 16-bit floats, each to the nearest, ties to even.
#if LIRANK_ISA == 512
LR_INLINE void store_element(f32 x, half_bits* p) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
LR_INLINE void store_element(f32 x, bfloat_bits* p) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i top = _mm512_srli_epi32(up, 16);
  const __m512i whole = _mm512_mask_mov_epi32(top, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(whole));
}
#elif LIRANK_ISA == 256
LR_INLINE void store_element(f32 x, half_bits* p) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
LR_INLINE void store_element(f32 x, bfloat_bits* p) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(up, 16);
  const __m256i whole = _mm256_blendv_epi8(top, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(whole),
                                                 _mm256_extracti128_si256(whole, 1)));
}
#else
LR_INLINE void store_element(f32 x, half_bits* p) {
  for (int i = 0; i < f32::N; ++i) p[i].bits = ::lirank::narrow_half(x.v[i]);
}
LR_INLINE void store_element(f32 x, bfloat_bits* p) {
  for (int i = 0; i < f32::N; ++i) p[i].bits = ::lirank::narrow_bfloat(x.v[i]);
}
#endif
