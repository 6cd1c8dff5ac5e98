// Exact attention among the components of one sample, for one instruction set.
//
// Tokens of width 1. Scores are q_i * k_j, so the maximum of a row is q_i * k_max or q_i * k_min,
// whichever is larger. No pass is needed to find it, and nothing of size r * r is stored.
// log2(e) / temperature is folded into q. An exponential then costs its argument, a range
// reduction, 5 FMAs and a scaling.
// Forward: queries of one sample run along the lanes, several vectors of them per pass. Keys and
// values are broadcast. With AVX-512 that is 10 instructions per 16 scores, without sums across
// lanes.
// Backward: keys run along the lanes. Exponentials are computed once per query and kept for two
// passes. Gradients of k and v are updated once per kQueries queries. Sums across lanes are taken
// for a block of queries at once, because one by one they took half of the time at r = 64.
//
// If the scores of a sample may reach 2^20, rounding of the maximum would become visible. Such a
// sample takes the same loop with the argument q * (k - k_max) or q * (k - k_min). That is one
// instruction more, and it is exact at the maximum for any magnitude.
//
// Tried and dropped, AVX2:
// - computing the exponentials of a block step by step for all its queries (4 % slower);
// - four vectors of queries instead of two (the constants no longer stay in registers).

constexpr int kQueries = LIRANK_ISA == 512 ? 4 : 2;

// 2^f for |f| <= 1/2, degree 5, highest first; 2^0 is exactly 1.
constexpr float kExp2[] = {0.0013264728477224708f, 0.009671512991189957f, 0.05550733581185341f,
                           0.24022242426872253f,   0.6931470036506653f,   1.0f};
LR_INLINE f32 exp2_fraction(f32 f) {
  f32 p = f32::set1(kExp2[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; ++i) p = fma(p, f, f32::set1(kExp2[i]));
  return p;
}

// 2^t for t <= about 0. Relative error 1.6e-7 (float), 4e-16 (double); 0 far below; NaN
// stays. 2^0 is exactly 1: a single key gives exactly its value.
#if LIRANK_ISA == 512
LR_INLINE f32 exp2_score(f32 t) {
  const f32 f = {_mm512_reduce_ps(t.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};  // [0, 1)
  f32 p = f32::set1(0.0018671300495043397f);
  p = fma(p, f, f32::set1(0.009017030708491802f));
  p = fma(p, f, f32::set1(0.05579991266131401f));
  p = fma(p, f, f32::set1(0.24016444385051727f));
  p = fma(p, f, f32::set1(0.6931512951850891f));
  p = fma(p, f, f32::set1(1.0f));
  return scale2(p, t);  // scalef takes the floor itself
}
#else
// Adding 1.5 * 2^23 + 127 rounds to a whole number and leaves n + 127 in the low bits, where a
// shift makes 2^n of it: 14 instructions per 8 scores with those of the sums, instead of the 21
// of round_even and scale2; 0.78 cycles a score on Zen 3 instead of 1.04. Its two multipliers
// bind, with 8 of the 14 and the maximum. A product, so that NaN stays whatever its payload.
LR_INLINE f32 exp2_score(f32 t) {
  const f32 magic = f32::set1(12583039.0f);
  t = max(f32::set1(-126.0f), t);
  const f32 moved = t + magic;
  return exp2_fraction(t - (moved - magic)) * to_exponent(moved);
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

// True where |q| * |k| might reach 2^20 (or is not a number): see above.
template <typename T>
LR_INLINE bool needs_exact(Range<T> q, Range<T> k, T scale) {
  const T a = q.high > -q.low ? q.high : -q.low, b = k.high > -k.low ? k.high : -k.low;
  return !(a * scale * b < T(1 << 20));
}

// out_i = sum_j e_ij v_j / sum_j e_ij for Q vectors of queries.
template <typename T, int Q, bool exact>
LR_INLINE void attend_block(const T* q, int64_t left, Range<T> keys, const T* k, const T* v,
                            int64_t r, T scale, T* out) {
  using V = Vec<T>;
  V query[Q], top[Q], total[Q], part[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    query[i] = load_part(q + i * V::N, left - i * V::N) * V::set1(scale);
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
template <typename T, bool exact>
static __attribute__((noinline)) void attend_all(const T* q, int64_t queries, Range<T> keys,
                                                 const T* k, const T* v, int64_t r, T scale,
                                                 T* out) {
  using V = Vec<T>;
  constexpr int N = V::N;
  int64_t i = 0;
  for (; i + (kQueries - 1) * N < queries; i += kQueries * N)
    attend_block<T, kQueries, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
  for (; i + N < queries; i += 2 * N)
    attend_block<T, 2, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
  if (i < queries) attend_block<T, 1, exact>(q + i, queries - i, keys, k, v, r, scale, out + i);
}

// What one query brings to the second pass of the backward.
template <typename T, int N>
struct Queries {
  alignas(64) T q[N], share[N], mean[N], weight[N], raw[N];
};

// First pass, queries [i, i + kQueries) of a block: exponentials into e, and their sums, alone
// and with the values, still spread over the lanes.
template <typename T, bool exact>
LR_INLINE void exponentials(const T* q, Range<T> keys, const T* k, const T* v, int64_t r,
                            int64_t padded, T scale, Vec<T>* totals, Vec<T>* parts, T* e) {
  using V = Vec<T>;
  constexpr int N = V::N, Q = kQueries;
  V query[Q], top[Q], total[Q], part[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    query[i] = V::set1(q[i] * scale);
    top[i] = score_top(query[i], V::set1(keys.low), V::set1(keys.high), exact);
    total[i] = part[i] = V::set1(0);
  }
  for (int64_t j = 0; j < padded; j += N) {
    const V key = load_part(k + j, r - j), value = load_part(v + j, r - j);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      V a = exp2_score(score(query[i], key, top[i], exact));
      if (r - j < N) a = keep_first(a, r - j);
      a.store(e + i * padded + j);
      total[i] = total[i] + a;
      part[i] = fma(a, value, part[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    totals[i] = total[i];
    parts[i] = part[i];
  }
}

// Second pass: adds to gk and gv; slopes stay spread over the lanes.
template <typename T>
LR_INLINE void gradients(const Queries<T, Vec<T>::N>& all, int64_t first, const T* k, const T* v,
                         int64_t r, int64_t padded, const T* e, Vec<T>* slopes, T* gk, T* gv) {
  using V = Vec<T>;
  constexpr int N = V::N, Q = kQueries;
  V share[Q], weight[Q], mean[Q], slope[Q], raw[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    share[i] = V::set1(all.share[first + i]);
    weight[i] = V::set1(all.weight[first + i]);
    mean[i] = V::set1(all.mean[first + i]);
    raw[i] = V::set1(all.raw[first + i]);
    slope[i] = V::set1(0);
  }
  for (int64_t j = 0; j < padded; j += N) {
    const V key = load_part(k + j, r - j), value = load_part(v + j, r - j);
    V to_value = load_part(gv + j, r - j), to_key = load_part(gk + j, r - j);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V a = V::load(e + i * padded + j) * share[i];
      const V b = a * (value - mean[i]);
      to_value = fma(a, weight[i], to_value);
      to_key = fma(b, raw[i], to_key);
      slope[i] = fma(b, key, slope[i]);
    }
    store_part(to_value, gv + j, r - j);
    store_part(to_key, gk + j, r - j);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) slopes[i] = slope[i];
}

// Backward of `queries` queries with gradients g, N at a time, so that sums across lanes are
// taken for N queries together. e: N rows of the keys' padded length. Writes gk and gv;
// slopes: o'(q), to be multiplied by g for q's gradient.
template <typename T, bool exact>
static __attribute__((noinline)) void attend_backward_all(const T* g, const T* q, int64_t queries,
                                                          Range<T> keys, const T* k, const T* v,
                                                          int64_t r, T scale, T inverse, T* slopes,
                                                          T* gk, T* gv, T* e) {
  using V = Vec<T>;
  constexpr int N = V::N;
  const int64_t padded = (r + N - 1) / N * N;
  Queries<T, N> block;
  V first[N], second[N];
  for (int64_t j = 0; j < r; ++j) gk[j] = gv[j] = 0;
  for (int64_t i = 0; i < queries; i += N) {
    const int64_t left = queries - i;
    const V query = load_part(q + i, left), weight = load_part(g + i, left);
    query.store(block.q);
    for (int64_t m = 0; m < N && m < left; m += kQueries)
      exponentials<T, exact>(block.q + m, keys, k, v, r, padded, scale, first + m, second + m,
                             e + m * padded);
    for (int64_t m = (left + kQueries - 1) / kQueries * kQueries; m < N; ++m)
      first[m] = second[m] = V::set1(1);
    const V share = V::set1(1) / sums(first);
    share.store(block.share);
    (sums(second) * share).store(block.mean);
    weight.store(block.weight);
    (weight * query * V::set1(inverse)).store(block.raw);
    for (int64_t m = 0; m < N && m < left; m += kQueries)
      gradients<T>(block, m, k, v, r, padded, e + m * padded, first + m, gk, gv);
    store_part(sums(first) * V::set1(inverse), slopes + i, left);
  }
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
template <typename T>
LR_INLINE T score_row(const T* q, const T* k, int64_t h, int64_t t, int64_t padded, T scale, T* e) {
  using V = Vec<T>;
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

template <typename T>
static __attribute__((noinline)) void attend_tokens(const T* q, const T* k, const T* v, int64_t h,
                                                    int64_t t, T scale, T* out, T* scratch) {
  using V = Vec<T>;
  const int64_t padded = (h + V::N - 1) / V::N * V::N;
  T *keys = scratch, *values = keys + t * padded, *e = values + t * padded;
  by_component(k, h, t, padded, keys);
  by_component(v, h, t, padded, values);
  for (int64_t i = 0; i < h; ++i) {
    const T total = score_row<T>(q + i * t, keys, h, t, padded, scale, e);
    for (int64_t c = 0; c < t; ++c) {
      V part = V::set1(0);
      for (int64_t j = 0; j < padded; j += V::N)
        part = fma(V::load(e + j), V::load(values + c * padded + j), part);
      out[i * t + c] = sum(part) / total;
    }
  }
}

// inverse: 1 / (temperature * sqrt(t)).
template <typename T>
static __attribute__((noinline)) void attend_tokens_backward(const T* g, const T* q, const T* k,
                                                             const T* v, int64_t h, int64_t t,
                                                             T scale, T inverse, T* gq, T* gk,
                                                             T* gv, T* scratch) {
  using V = Vec<T>;
  const int64_t padded = (h + V::N - 1) / V::N * V::N, size = t * padded;
  T *keys = scratch, *values = keys + size, *to_keys = values + size, *to_values = to_keys + size;
  T *e = to_values + size, *d = e + padded;
  by_component(k, h, t, padded, keys);
  by_component(v, h, t, padded, values);
  for (int64_t j = 0; j < 2 * size; ++j) to_keys[j] = 0;
  for (int64_t i = 0; i < h; ++i) {
    const T *query = q + i * t, *grad = g + i * t;
    const V share = V::set1(1 / score_row<T>(query, keys, h, t, padded, scale, e));
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
