// Vector helpers of the cross kernels, for one instruction set.

static inline int64_t padded_to(int64_t n, int64_t W) { return (n + W - 1) / W * W; }

template <typename T>
LR_INLINE Vec<T> load_part(const T* p, int64_t left) {
  using V = Vec<T>;
  return left >= V::N ? V::load(p) : V::load(p, left);
}

template <typename V>
LR_INLINE void store_part(V a, typename V::T* p, int64_t left) {
  if (left >= V::N)
    a.store(p);
  else
    a.store(p, left);
}

// a in the first n lanes, 0 beyond.
#if LIRANK_ISA == 512
LR_INLINE f32 keep_first(f32 a, int64_t n) { return {_mm512_maskz_mov_ps(f32::mask(n), a.v)}; }
LR_INLINE f64 keep_first(f64 a, int64_t n) { return {_mm512_maskz_mov_pd(f64::mask(n), a.v)}; }
#elif LIRANK_ISA == 256
LR_INLINE f32 keep_first(f32 a, int64_t n) {
  return {_mm256_and_ps(_mm256_castsi256_ps(f32::mask(n)), a.v)};
}
LR_INLINE f64 keep_first(f64 a, int64_t n) {
  return {_mm256_and_pd(_mm256_castsi256_pd(f64::mask(n)), a.v)};
}
LR_INLINE f64 scale2(f64 a, f64 n) {                         // n whole, in [-1022, 1023]
  const __m256d magic = _mm256_set1_pd(6755399441055744.0);  // 1.5 * 2^52
  const __m256i whole =
      _mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(n.v, magic)), _mm256_castpd_si256(magic));
  const __m256i bits = _mm256_slli_epi64(_mm256_add_epi64(whole, _mm256_set1_epi64x(1023)), 52);
  return {_mm256_mul_pd(a.v, _mm256_castsi256_pd(bits))};
}
#else
template <typename S, int L>
LR_INLINE PlainVec<S, L> keep_first(PlainVec<S, L> a, int64_t n) {
  for (int i = 0; i < L; ++i)
    if (i >= n) a.v[i] = 0;
  return a;
}
#endif

// Turns a block of N x N.
template <typename V>
LR_INLINE void transpose(V* rows) {
  using T = typename V::T;
  T at[V::N][V::N], transposed[V::N];
  for (int i = 0; i < V::N; ++i) rows[i].store(at[i]);
  for (int j = 0; j < V::N; ++j) {
    for (int i = 0; i < V::N; ++i) transposed[i] = at[i][j];
    rows[j] = V::load(transposed);
  }
}

#if LIRANK_ISA == 512
LR_INLINE void transpose(f32* rows) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d lo0 = _mm512_castps_pd(a[i]), lo1 = _mm512_castps_pd(a[i + 2]);
    const __m512d hi0 = _mm512_castps_pd(a[i + 1]), hi1 = _mm512_castps_pd(a[i + 3]);
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo0, lo1));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo0, lo1));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(hi0, hi1));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(hi0, hi1));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    a[c] = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);
    a[c + 4] = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
    a[c + 8] = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
    a[c + 12] = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c].v = _mm512_shuffle_f32x4(a[c], a[c + 8], 0x88);
    rows[c + 8].v = _mm512_shuffle_f32x4(a[c], a[c + 8], 0xdd);
    rows[c + 4].v = _mm512_shuffle_f32x4(a[c + 4], a[c + 12], 0x88);
    rows[c + 12].v = _mm512_shuffle_f32x4(a[c + 4], a[c + 12], 0xdd);
  }
}
#elif LIRANK_ISA == 256
LR_INLINE void transpose(f32* rows) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c].v = _mm256_permute2f128_ps(b[c], b[c + 4], 0x20);
    rows[c + 4].v = _mm256_permute2f128_ps(b[c], b[c + 4], 0x31);
  }
}
#endif

// One vector with sum(acc[i]) in lane i.
template <typename V>
LR_INLINE V sums(V* acc) {
  transpose(acc);
  for (int width = V::N / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) acc[i] = acc[i] + acc[i + width];
  return acc[0];
}

#if LIRANK_ISA == 512
LR_INLINE f32 sums(f32* acc) {
  __m512 a[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(acc[2 * i].v, acc[2 * i + 1].v),
                         _mm512_unpackhi_ps(acc[2 * i].v, acc[2 * i + 1].v));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    a[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x88),
                        _mm512_shuffle_f32x4(a[0], a[1], 0xdd))};
}
#endif

template <typename T>
struct Range {
  T low, high;
};

template <typename T>
LR_INLINE Range<T> range_of(const T* x, int64_t n) {
  using V = Vec<T>;
  if (n < V::N) {
    Range<T> r = {x[0], x[0]};
    for (int64_t i = 1; i < n; ++i) {
      r.low = x[i] < r.low ? x[i] : r.low;
      r.high = x[i] > r.high ? x[i] : r.high;
    }
    return r;
  }
  V low = V::load(x), high = low;
  for (int64_t i = V::N; i + V::N <= n; i += V::N) {
    low = min(low, V::load(x + i));
    high = max(high, V::load(x + i));
  }
  low = min(low, V::load(x + n - V::N));
  high = max(high, V::load(x + n - V::N));
  return {lane_min(low), lane_max(high)};
}
