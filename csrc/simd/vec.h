// Vectors of float and double with one interface on every instruction set.
//
// Included once per instruction set inside its namespace (see foreach_isa.h), so
// there is no include guard. V::N lanes; `load(p, n)` and `store(p, n)` touch only
// the first n elements (the others read as 0). Reductions add in one fixed tree, so
// a result never depends on the number of threads.

#if LIRANK_ISA == 512

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

#elif LIRANK_ISA == 256

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

#else  // plain C++: the compiler's own vectors of 16 bytes, on any processor

template <typename Scalar, int lanes>
struct PlainVec {
  using T = Scalar;
  static constexpr int N = lanes;
  typedef Scalar V __attribute__((vector_size(lanes * sizeof(Scalar))));
  V v;
  static LR_METHOD PlainVec set1(Scalar x) {
    PlainVec r;
    for (int i = 0; i < lanes; ++i) r.v[i] = x;
    return r;
  }
  static LR_METHOD PlainVec load(const Scalar* p) {
    PlainVec r;
    memcpy(&r.v, p, sizeof(V));
    return r;
  }
  static LR_METHOD PlainVec load(const Scalar* p, int64_t n) {
    PlainVec r = set1(0);
    for (int i = 0; i < lanes && i < n; ++i) r.v[i] = p[i];
    return r;
  }
  static LR_METHOD PlainVec load(const int8_t* p) {
    PlainVec r;
    for (int i = 0; i < lanes; ++i) r.v[i] = (Scalar)p[i];
    return r;
  }
  static LR_METHOD PlainVec load(const int8_t* p, int64_t n) {
    PlainVec r = set1(0);
    for (int i = 0; i < lanes && i < n; ++i) r.v[i] = (Scalar)p[i];
    return r;
  }
  LR_METHOD void store(Scalar* p) const { memcpy(p, &v, sizeof(V)); }
  LR_METHOD void store(Scalar* p, int64_t n) const {
    for (int i = 0; i < lanes && i < n; ++i) p[i] = v[i];
  }
};
using f32 = PlainVec<float, 4>;
using f64 = PlainVec<double, 2>;
#define LR_LANES(expression)                         \
  PlainVec<S, L> r;                                  \
  for (int i = 0; i < L; ++i) r.v[i] = (expression); \
  return r
#define LR_PLAIN               \
  template <typename S, int L> \
  LR_INLINE PlainVec<S, L>
LR_PLAIN operator+(PlainVec<S, L> a, PlainVec<S, L> b) { return {a.v + b.v}; }
LR_PLAIN operator-(PlainVec<S, L> a, PlainVec<S, L> b) { return {a.v - b.v}; }
LR_PLAIN operator*(PlainVec<S, L> a, PlainVec<S, L> b) { return {a.v * b.v}; }
LR_PLAIN operator/(PlainVec<S, L> a, PlainVec<S, L> b) { return {a.v / b.v}; }
LR_PLAIN fma(PlainVec<S, L> a, PlainVec<S, L> b, PlainVec<S, L> c) { return {a.v * b.v + c.v}; }
LR_PLAIN fms(PlainVec<S, L> a, PlainVec<S, L> b, PlainVec<S, L> c) { return {a.v * b.v - c.v}; }
LR_PLAIN fnma(PlainVec<S, L> a, PlainVec<S, L> b, PlainVec<S, L> c) { return {c.v - a.v * b.v}; }
// as the x86 instructions: the second operand where either is not a number
LR_PLAIN max(PlainVec<S, L> a, PlainVec<S, L> b) { LR_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
LR_PLAIN min(PlainVec<S, L> a, PlainVec<S, L> b) { LR_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
// |a| below 2^22 (float) or 2^51 (double): adding 1.5 * 2^23 or 1.5 * 2^52 rounds.
LR_PLAIN round_even(PlainVec<S, L> a) {
  constexpr S magic = sizeof(S) == 4 ? (S)12582912.0f : (S)6755399441055744.0;
  return {(a.v + magic) - magic};
}
LR_PLAIN floor(PlainVec<S, L> a) { LR_LANES((S)__builtin_floor((double)a.v[i])); }
LR_PLAIN scale2(PlainVec<S, L> a, PlainVec<S, L> n) {
  LR_LANES((S)__builtin_ldexp((double)a.v[i], (int)n.v[i]));
}
// a * 2^n for whole n in [-150, 128], in two steps as above
typedef int32_t PlainInts __attribute__((vector_size(16)));
LR_INLINE f32 scale2(f32 a, f32 n) {
  const PlainInts whole = __builtin_convertvector(n.v, PlainInts), half = whole >> 1;
  const PlainInts first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return {a.v * (f32::V)first * (f32::V)second};
}
LR_INLINE f32 to_exponent(f32 a) { return {(f32::V)((PlainInts)a.v << 23)}; }
LR_INLINE f32 add_bits(f32 a, f32 b) { return {(f32::V)((PlainInts)a.v + (PlainInts)b.v)}; }
LR_INLINE f32 subtract_bits(f32 a, f32 b) { return {(f32::V)((PlainInts)a.v - (PlainInts)b.v)}; }
LR_PLAIN gather(const S* p, PlainVec<S, L> index) { LR_LANES(p[(int64_t)index.v[i]]); }
LR_PLAIN where_positive(PlainVec<S, L> a, PlainVec<S, L> b) {
  LR_LANES(a.v[i] > 0 ? b.v[i] : (S)0);
}
LR_PLAIN where_between(PlainVec<S, L> a, PlainVec<S, L> lo, PlainVec<S, L> hi, PlainVec<S, L> b) {
  LR_LANES(a.v[i] >= lo.v[i] && a.v[i] <= hi.v[i] ? b.v[i] : (S)0);
}
#undef LR_LANES
#undef LR_PLAIN

#endif

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

#if LIRANK_ISA == 256
// The same trees, lanes staying in registers.
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
#endif

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
