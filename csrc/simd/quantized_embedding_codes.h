// Codes of row-wise quantized tables to vectors and back, for one instruction set. Used by every
// look-up that reads packed rows.

// N codes from `column` on. Reads past the width end inside the row: its codes are padded to 8
// bytes, and a vector of 16 that starts in the last 8 is followed by the 8 of the pair.
LR_INLINE f32 load_codes8(const uint8_t* codes, int64_t column) {
  return f32::load((const int8_t*)codes + column);
}

// The same of two codes a byte; `column` is even.
LR_INLINE f32 load_codes4(const uint8_t* codes, int64_t column) {
#if LIRANK_ISA == 512
  uint64_t word;
  memcpy(&word, codes + column / 2, 8);
  const __m128i both = _mm_cvtsi64_si128((long long)word);
  const __m128i low = _mm_and_si128(both, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
  const __m128i all = _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(all))};
#elif LIRANK_ISA == 256
  int word;  // code i in bits 4 i to 4 i + 3
  memcpy(&word, codes + column / 2, 4);
  const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i all =
      _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word), places), _mm256_set1_epi32(15));
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(all, _mm256_set1_epi32(8)))};
#else
  int8_t plain[f32::N];
  for (int i = 0; i < f32::N; ++i)
    plain[i] = (int8_t)rowwise::unpack4(codes[column / 2 + i / 2], i);
  return f32::load(plain);
#endif
}

template <int bits>
LR_INLINE f32 load_codes(const uint8_t* codes, int64_t column) {
  if constexpr (bits == 8) return load_codes8(codes, column);
  return load_codes4(codes, column);
}

LR_INLINE void read_pair(const uint8_t* at, float& scale, float& mid) {
  memcpy(&scale, at, 4);
  memcpy(&mid, at + 4, 4);
}
