// Attention among the components of one sample, for one instruction set.
//
// Tokens of width 1: scores are q_i * k_j, so the row maximum is q_i * k_max or q_i * k_min,
// whichever is larger: no pass to find it, nothing of size r * r. log2(e) / temperature is
// folded into q, so that one exponential costs: argument, reduction, 5 FMAs, scaling.
// Forward: 16 queries of one sample along the lanes, keys and values broadcast, four vectors
// of queries per pass: 10 instructions per 16 scores, no sums across lanes.
// Backward: keys along the lanes, exponentials computed once per query and kept for two
// passes, gradients of k and v updated once per kQueries queries.
//
// A sample whose scores may reach 2^20 (there the rounding of the maximum would show) takes
// the same loop with the argument q * (k - k_max) or q * (k - k_min): one instruction more,
// exact at the maximum whatever the magnitude.

#if LIRANK_ISA == 512
constexpr int kQueries = 4;
LR_INLINE f32 keep_first(f32 a, int64_t n) { return {_mm512_maskz_mov_ps(f32::mask(n), a.v)}; }
LR_INLINE f64 keep_first(f64 a, int64_t n) { return {_mm512_maskz_mov_pd(f64::mask(n), a.v)}; }
#elif LIRANK_ISA == 256
constexpr int kQueries = 2;
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
constexpr int kQueries = 2;
template <typename S, int L>
LR_INLINE PlainVec<S, L> keep_first(PlainVec<S, L> a, int64_t n) {
  for (int i = 0; i < L; ++i)
    if (i >= n) a.v[i] = 0;
  return a;
}
#endif

// 2^t for t <= about 0. Relative error 7.5e-8 (float), 2e-16 (double); 0 far below; NaN stays.
#if LIRANK_ISA == 512
LR_INLINE f32 exp2_score(f32 t) {
  const f32 f = {_mm512_reduce_ps(t.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};  // [0, 1)
  f32 p = f32::set1(0.0018775761127471924f);
  p = fma(p, f, f32::set1(0.00898934155702591f));
  p = fma(p, f, f32::set1(0.05582631751894951f));
  p = fma(p, f, f32::set1(0.24015361070632935f));
  p = fma(p, f, f32::set1(0.6931530833244324f));
  p = fma(p, f, f32::set1(0.9999999403953552f));
  return scale2(p, t);  // scalef takes the floor itself
}
#else
LR_INLINE f32 exp2_score(f32 t) {
  t = max(f32::set1(-126.0f), t);
  const f32 n = round_even(t), f = t - n;
  f32 p = f32::set1(0.0013276467798277736f);
  p = fma(p, f, f32::set1(0.009675540961325169f));
  p = fma(p, f, f32::set1(0.05550713464617729f));
  p = fma(p, f, f32::set1(0.24022120237350464f));
  p = fma(p, f, f32::set1(0.6931469440460205f));
  p = fma(p, f, f32::set1(1.0000001192092896f));
  return scale2(p, n);
}
#endif
LR_INLINE f64 exp2_score(f64 t) {
  t = max(f64::set1(-1022.0), t);
  const f64 n = round_even(t), f = (t - n) * f64::set1(0.69314718055994530942);
  f64 p = f64::set1(1.0 / 6227020800.0);
  const double inverse[] = {1.0 / 479001600,
                            1.0 / 39916800,
                            1.0 / 3628800,
                            1.0 / 362880,
                            1.0 / 40320,
                            1.0 / 5040,
                            1.0 / 720,
                            1.0 / 120,
                            1.0 / 24,
                            1.0 / 6,
                            0.5,
                            1.0,
                            1.0};
#pragma GCC unroll 13
  for (int i = 0; i < 13; ++i) p = fma(p, f, f64::set1(inverse[i]));
  return scale2(p, n);
}

// What score() takes off: the row's maximum, or in the exact form the key that attains it.
template <typename V>
LR_INLINE V score_top(V q, V low, V high, bool exact) {
  if (!exact) return V::set1(0) - max(q * high, q * low);
  return where_positive(q, high) + where_positive(V::set1(0) - q, low);
}

template <typename V>
LR_INLINE V score(V q, V k, V top, bool exact) {
  return exact ? q * (k - top) : fma(q, k, top);
}

template <typename V>
LR_INLINE V load_part(const typename V::T* p, int64_t left) {
  return left >= V::N ? V::load(p) : V::load(p, left);
}

template <typename V>
LR_INLINE void store_part(V a, typename V::T* p, int64_t left) {
  if (left >= V::N)
    a.store(p);
  else
    a.store(p, left);
}

template <typename T>
struct Range {
  T low, high;
};

template <typename V>
LR_INLINE Range<typename V::T> range_of(const typename V::T* x, int64_t n) {
  using T = typename V::T;
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

// True where |q| * |k| might reach 2^20 (or is not a number): see above.
template <typename T>
LR_INLINE bool needs_exact(Range<T> q, Range<T> k, T scale) {
  const T a = q.high > -q.low ? q.high : -q.low, b = k.high > -k.low ? k.high : -k.low;
  return !(a * scale * b < T(1 << 20));
}

// out_i = sum_j e_ij v_j / sum_j e_ij for Q vectors of queries.
template <typename V, int Q, bool exact>
LR_INLINE void attend_block(const typename V::T* q, int64_t left, Range<typename V::T> keys,
                            const typename V::T* k, const typename V::T* v, int64_t r,
                            typename V::T scale, typename V::T* out) {
  V query[Q], top[Q], total[Q], part[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    query[i] = load_part<V>(q + i * V::N, left - i * V::N) * V::set1(scale);
    top[i] = score_top(query[i], V::set1(keys.low), V::set1(keys.high), exact);
    total[i] = part[i] = V::set1(0);
  }
  for (int64_t j = 0; j < r; ++j) {
    const V key = V::set1(k[j]), value = V::set1(v[j]);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V e = exp2_score(score(query[i], key, top[i], exact));
      total[i] = total[i] + e;
      part[i] = fma(e, value, part[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) store_part(part[i] / total[i], out + i * V::N, left - i * V::N);
}

// `queries` queries of one sample against its r keys. scale: log2(e) / temperature.
template <typename V, bool exact>
static __attribute__((noinline)) void attend_all(const typename V::T* q, int64_t queries,
                                                 Range<typename V::T> keys, const typename V::T* k,
                                                 const typename V::T* v, int64_t r,
                                                 typename V::T scale, typename V::T* out) {
  constexpr int N = V::N;
  int64_t i = 0;
  for (; i + (kQueries - 1) * N < queries; i += kQueries * N)
    attend_block<V, kQueries, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
  for (; i + N < queries; i += 2 * N)
    attend_block<V, 2, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
  if (i < queries) attend_block<V, 1, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
}

template <typename V>
LR_INLINE void attend(const typename V::T* q, const typename V::T* k, const typename V::T* v,
                      int64_t r, typename V::T scale, typename V::T* out) {
  const Range<typename V::T> keys = range_of<V>(k, r);
  if (needs_exact(range_of<V>(q, r), keys, scale))
    attend_all<V, true>(q, r, keys, k, v, r, scale, out);
  else
    attend_all<V, false>(q, r, keys, k, v, r, scale, out);
}

// Backward of kQueries (or fewer, the rest with zero gradient) queries. e: kQueries rows of
// the keys' padded length. gk and gv are added to, scaled by 1 / temperature at the end.
template <typename V, bool exact>
LR_INLINE void attend_backward_block(const typename V::T* g, const typename V::T* q,
                                     int64_t queries, Range<typename V::T> keys,
                                     const typename V::T* k, const typename V::T* v, int64_t r,
                                     typename V::T scale, typename V::T inverse, typename V::T* gq,
                                     typename V::T* gk, typename V::T* gv, typename V::T* e) {
  using T = typename V::T;
  constexpr int N = V::N, Q = kQueries;
  const int64_t padded = (r + N - 1) / N * N;
  V query[Q], top[Q], total[Q], part[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    query[i] = V::set1(q[i < queries ? i : 0] * scale);
    top[i] = score_top(query[i], V::set1(keys.low), V::set1(keys.high), exact);
    total[i] = part[i] = V::set1(0);
  }
  for (int64_t j = 0; j < padded; j += N) {
    const V key = load_part<V>(k + j, r - j), value = load_part<V>(v + j, r - j);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      V a = exp2_score(score(query[i], key, top[i], exact));
      if (r - j < N) a = keep_first(a, r - j);
      a.store(e + i * padded + j);
      total[i] = total[i] + a;
      part[i] = fma(a, value, part[i]);
    }
  }
  V weight[Q], mean[Q], slope[Q], raw[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const T all = sum(total[i]);
    weight[i] = V::set1(i < queries ? g[i] / all : T(0));
    mean[i] = V::set1(sum(part[i]) / all);
    raw[i] = V::set1(q[i < queries ? i : 0] * inverse);
    slope[i] = V::set1(0);
  }
  for (int64_t j = 0; j < padded; j += N) {
    const V key = load_part<V>(k + j, r - j), value = load_part<V>(v + j, r - j);
    V to_value = load_part<V>(gv + j, r - j), to_key = load_part<V>(gk + j, r - j);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V a = V::load(e + i * padded + j) * weight[i];
      const V b = a * (value - mean[i]);
      to_value = to_value + a;
      to_key = fma(b, raw[i], to_key);
      slope[i] = fma(b, key, slope[i]);
    }
    store_part(to_value, gv + j, r - j);
    store_part(to_key, gk + j, r - j);
  }
  for (int i = 0; i < Q && i < queries; ++i) gq[i] = sum(slope[i]) * inverse;
}

template <typename V, bool exact>
static __attribute__((noinline)) void attend_backward_all(
    const typename V::T* g, const typename V::T* q, int64_t queries, Range<typename V::T> keys,
    const typename V::T* k, const typename V::T* v, int64_t r, typename V::T scale,
    typename V::T inverse, typename V::T* gq, typename V::T* gk, typename V::T* gv,
    typename V::T* e) {
  for (int64_t j = 0; j < r; ++j) gk[j] = gv[j] = 0;
  for (int64_t i = 0; i < queries; i += kQueries)
    attend_backward_block<V, exact>(g + i, q + i, queries - i, keys, k, v, r, scale, inverse,
                                    gq + i, gk, gv, e);
}

// scale: log2(e) / temperature; inverse: 1 / temperature.
template <typename V>
LR_INLINE void attend_backward(const typename V::T* g, const typename V::T* q,
                               const typename V::T* k, const typename V::T* v, int64_t r,
                               typename V::T scale, typename V::T inverse, typename V::T* gq,
                               typename V::T* gk, typename V::T* gv, typename V::T* scratch) {
  const Range<typename V::T> keys = range_of<V>(k, r);
  if (needs_exact(range_of<V>(q, r), keys, scale))
    attend_backward_all<V, true>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  else
    attend_backward_all<V, false>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
}

// ---- tokens wider than 1: one row of scores at a time ------------------------------------

// Keys or values component by component: out[c * padded + j] = x[j * t + c], 0 beyond h.
template <typename T>
LR_INLINE void by_component(const T* x, int64_t h, int64_t t, int64_t padded, T* out) {
  for (int64_t c = 0; c < t; ++c) {
    for (int64_t j = 0; j < h; ++j) out[c * padded + j] = x[j * t + c];
    for (int64_t j = h; j < padded; ++j) out[c * padded + j] = 0;
  }
}

// e_j = 2^(s_j - max s), 0 beyond h; returns their sum.
template <typename V>
LR_INLINE typename V::T score_row(const typename V::T* q, const typename V::T* k, int64_t h,
                                  int64_t t, int64_t padded, typename V::T scale,
                                  typename V::T* e) {
  using T = typename V::T;
  for (int64_t j = 0; j < padded; j += V::N) {
    V s = V::set1(0);
    for (int64_t c = 0; c < t; ++c) s = fma(V::set1(q[c] * scale), V::load(k + c * padded + j), s);
    s.store(e + j);
  }
  T top = e[0];
  for (int64_t j = 1; j < h; ++j) top = e[j] > top ? e[j] : top;
  V total = V::set1(0);
  for (int64_t j = 0; j < padded; j += V::N) {
    V a = exp2_score(V::load(e + j) - V::set1(top));
    if (h - j < V::N) a = keep_first(a, h - j);
    a.store(e + j);
    total = total + a;
  }
  return sum(total);
}

template <typename V>
static __attribute__((noinline)) void attend_tokens(const typename V::T* q, const typename V::T* k,
                                                    const typename V::T* v, int64_t h, int64_t t,
                                                    typename V::T scale, typename V::T* out,
                                                    typename V::T* scratch) {
  using T = typename V::T;
  const int64_t padded = (h + V::N - 1) / V::N * V::N;
  T *keys = scratch, *values = keys + t * padded, *e = values + t * padded;
  by_component(k, h, t, padded, keys);
  by_component(v, h, t, padded, values);
  for (int64_t i = 0; i < h; ++i) {
    const T total = score_row<V>(q + i * t, keys, h, t, padded, scale, e);
    for (int64_t c = 0; c < t; ++c) {
      V part = V::set1(0);
      for (int64_t j = 0; j < padded; j += V::N)
        part = fma(V::load(e + j), V::load(values + c * padded + j), part);
      out[i * t + c] = sum(part) / total;
    }
  }
}

// inverse: 1 / (temperature * sqrt(t)).
template <typename V>
static __attribute__((noinline)) void attend_tokens_backward(
    const typename V::T* g, const typename V::T* q, const typename V::T* k, const typename V::T* v,
    int64_t h, int64_t t, typename V::T scale, typename V::T inverse, typename V::T* gq,
    typename V::T* gk, typename V::T* gv, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t padded = (h + V::N - 1) / V::N * V::N, size = t * padded;
  T *keys = scratch, *values = keys + size, *to_keys = values + size, *to_values = to_keys + size;
  T *e = to_values + size, *d = e + padded;
  by_component(k, h, t, padded, keys);
  by_component(v, h, t, padded, values);
  for (int64_t j = 0; j < 2 * size; ++j) to_keys[j] = 0;
  for (int64_t i = 0; i < h; ++i) {
    const T *query = q + i * t, *grad = g + i * t;
    const V share = V::set1(1 / score_row<V>(query, keys, h, t, padded, scale, e));
    V dot = V::set1(0);
    for (int64_t j = 0; j < padded; j += V::N) {
      V da = V::set1(0);
      for (int64_t c = 0; c < t; ++c)
        da = fma(V::set1(grad[c]), V::load(values + c * padded + j), da);
      const V a = V::load(e + j) * share;
      a.store(e + j);
      da.store(d + j);
      dot = fma(a, da, dot);
    }
    const V mean = V::set1(sum(dot));
    for (int64_t j = 0; j < padded; j += V::N)
      (V::load(e + j) * (V::load(d + j) - mean) * V::set1(inverse)).store(d + j);
    for (int64_t c = 0; c < t; ++c) {
      V slope = V::set1(0);
      T *key = to_keys + c * padded, *value = to_values + c * padded;
      for (int64_t j = 0; j < padded; j += V::N) {
        const V ds = V::load(d + j);
        slope = fma(ds, V::load(keys + c * padded + j), slope);
        fma(ds, V::set1(query[c]), V::load(key + j)).store(key + j);
        fma(V::load(e + j), V::set1(grad[c]), V::load(value + j)).store(value + j);
      }
      gq[i * t + c] = sum(slope);
    }
  }
  for (int64_t j = 0; j < h; ++j)
    for (int64_t c = 0; c < t; ++c) {
      gk[j * t + c] = to_keys[c * padded + j];
      gv[j * t + c] = to_values[c * padded + j];
    }
}

// Elements of scratch that one sample needs, forward or backward.
static inline int64_t attention_scratch(int64_t r, int64_t t) {
  const int64_t lanes = 16, padded = (r / t + lanes - 1) / lanes * lanes;
  return t == 1 ? kQueries * padded : 4 * t * padded + 2 * padded;
}
