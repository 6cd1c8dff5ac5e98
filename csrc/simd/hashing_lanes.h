// hash_id of hashing_murmur.h on the 64-bit lanes of one instruction set; included like vec.h.
//
// An id takes six 64-bit multiplications. AVX-512 has them (vpmullq). AVX2 builds each from three
// 32-bit multiplications, which is still faster than the scalar unit with one per cycle.
//
// product32 multiplies the low 32 bits of its operands. right<by> shifts by a number that the
// compiler knows, and shift by any number.

#if LIRANK_ISA == 512

struct u64 {
  static constexpr int N = 8;
  __m512i v;
  static LR_METHOD u64 set1(uint64_t x) { return {_mm512_set1_epi64((int64_t)x)}; }
  static LR_METHOD u64 load(const int64_t* p) { return {_mm512_loadu_si512(p)}; }
  LR_METHOD void store(int64_t* p) const { _mm512_storeu_si512(p, v); }
};
LR_INLINE u64 operator^(u64 a, u64 b) { return {_mm512_xor_si512(a.v, b.v)}; }
LR_INLINE u64 operator+(u64 a, u64 b) { return {_mm512_add_epi64(a.v, b.v)}; }
LR_INLINE u64 times(u64 a, uint64_t b) { return {_mm512_mullo_epi64(a.v, u64::set1(b).v)}; }
LR_INLINE u64 rotate31(u64 a) { return {_mm512_rol_epi64(a.v, 31)}; }
LR_INLINE u64 operator-(u64 a, u64 b) { return {_mm512_sub_epi64(a.v, b.v)}; }
LR_INLINE u64 low32(u64 a) { return {_mm512_and_si512(a.v, u64::set1(0xffffffffu).v)}; }
LR_INLINE u64 product32(u64 a, u64 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
LR_INLINE u64 shift(u64 a, int by) { return {_mm512_srl_epi64(a.v, _mm_cvtsi32_si128(by))}; }
template <int by>
LR_INLINE u64 right(u64 a) {
  return {_mm512_srli_epi64(a.v, by)};
}

#elif LIRANK_ISA == 256

struct u64 {
  static constexpr int N = 4;
  __m256i v;
  static LR_METHOD u64 set1(uint64_t x) { return {_mm256_set1_epi64x((int64_t)x)}; }
  static LR_METHOD u64 load(const int64_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
  LR_METHOD void store(int64_t* p) const { _mm256_storeu_si256((__m256i*)p, v); }
};
LR_INLINE u64 operator^(u64 a, u64 b) { return {_mm256_xor_si256(a.v, b.v)}; }
LR_INLINE u64 operator+(u64 a, u64 b) { return {_mm256_add_epi64(a.v, b.v)}; }
LR_INLINE u64 operator-(u64 a, u64 b) { return {_mm256_sub_epi64(a.v, b.v)}; }
LR_INLINE u64 low32(u64 a) { return {_mm256_and_si256(a.v, u64::set1(0xffffffffu).v)}; }
LR_INLINE u64 product32(u64 a, u64 b) { return {_mm256_mul_epu32(a.v, b.v)}; }
LR_INLINE u64 shift(u64 a, int by) { return {_mm256_srl_epi64(a.v, _mm_cvtsi32_si128(by))}; }
template <int by>
LR_INLINE u64 right(u64 a) {
  return {_mm256_srli_epi64(a.v, by)};
}
LR_INLINE u64 rotate31(u64 a) {
  return {_mm256_or_si256(_mm256_slli_epi64(a.v, 31), right<33>(a).v)};
}
// low(a) * low(b) + (low(a) * high(b) + high(a) * low(b)) << 32
LR_INLINE u64 times(u64 a, uint64_t b) {
  const __m256i low = _mm256_set1_epi64x((int64_t)(uint32_t)b);
  const __m256i high = _mm256_set1_epi64x((int64_t)(b >> 32));
  const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(a.v, high),
                                         _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), low));
  return {_mm256_add_epi64(_mm256_mul_epu32(a.v, low), _mm256_slli_epi64(cross, 32))};
}

#else

struct u64 {
  static constexpr int N = 1;
  uint64_t v;
  static LR_METHOD u64 set1(uint64_t x) { return {x}; }
  static LR_METHOD u64 load(const int64_t* p) { return {(uint64_t)*p}; }
  LR_METHOD void store(int64_t* p) const { *p = (int64_t)v; }
};
LR_INLINE u64 operator^(u64 a, u64 b) { return {a.v ^ b.v}; }
LR_INLINE u64 operator+(u64 a, u64 b) { return {a.v + b.v}; }
LR_INLINE u64 times(u64 a, uint64_t b) { return {a.v * b}; }
LR_INLINE u64 rotate31(u64 a) { return {a.v << 31 | a.v >> 33}; }
LR_INLINE u64 operator-(u64 a, u64 b) { return {a.v - b.v}; }
LR_INLINE u64 low32(u64 a) { return {a.v & 0xffffffffu}; }
LR_INLINE u64 product32(u64 a, u64 b) { return {(uint64_t)(uint32_t)a.v * (uint32_t)b.v}; }
LR_INLINE u64 shift(u64 a, int by) { return {a.v >> by}; }
template <int by>
LR_INLINE u64 right(u64 a) {
  return {a.v >> by};
}

#endif

LR_INLINE u64 finalize(u64 k) {
  k = times(k ^ right<33>(k), ::lirank::murmur::kF1);
  k = times(k ^ right<33>(k), ::lirank::murmur::kF2);
  return k ^ right<33>(k);
}

// `start` holds seed ^ 8 in every lane: what h1 and h2 begin with, the length already in.
LR_INLINE u64 hash_lanes(u64 ids, u64 start) {
  const u64 mixed = times(rotate31(times(ids, ::lirank::murmur::kC1)), ::lirank::murmur::kC2);
  const u64 h1 = (mixed ^ start) + start, h2 = h1 + start;
  return finalize(h1) + finalize(h2);
}
