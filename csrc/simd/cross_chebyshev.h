// Attention of one sample at a few Chebyshev nodes, for one instruction set: the interpolation
// forward, and the choice between nodes and exact sum. What is interpolated, and the bound, stand
// in cross_chebyshev_bound.h.

#include "simd/cross_chebyshev_bound.h"

// Values of functions at the nodes, and coefficients: plus or even, then minus or odd.
typedef float Halves[2][kHalf];

// Whether rounding stays small; false where a number is not finite.
LR_INLINE bool is_level(const Halves& D, int64_t half) {
  float low = D[0][0], high = low;
  bool good = true;
  for (int side = 0; side < 2; ++side)
    for (int64_t p = 0; p < half; ++p) {
      low = smaller(D[side][p], low);
      high = larger(D[side][p], high);
      good &= D[side][p] - D[side][p] == 0;
    }
  return good && high <= kMostRange * low;
}
LR_INLINE bool all_finite(const float* x, int64_t n) {
  float odd = 0;
  for (int64_t i = 0; i < n; ++i) odd += x[i] - x[i];
  return odd == 0;
}

// out[f][m] = sum_p in[f][side][p] * table[p * kHalf + m] for F functions.
template <typename V, int Q, int F>
LR_INLINE void table_columns(const Halves* in, int side, const float* table, int64_t half,
                             int64_t m, Halves* out) {
  V acc[F][Q];
#pragma GCC unroll 8
  for (int i = 0; i < F * Q; ++i) acc[i / Q][i % Q] = V::set1(0);
  for (int64_t p = 0; p < half; ++p) {
    V row[Q];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) row[i] = V::load(table + p * kHalf + m + i * V::N);
#pragma GCC unroll 8
    for (int i = 0; i < F * Q; ++i)
      acc[i / Q][i % Q] = fma(V::set1(in[i / Q][side][p]), row[i % Q], acc[i / Q][i % Q]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < F * Q; ++i) acc[i / Q][i % Q].store(out[i / Q][side] + m + i % Q * V::N);
}
template <typename V, int F>
LR_INLINE void table_products(const Halves* in, const float* even, const float* odd, int64_t half,
                              Halves* out) {
  for (int side = 0; side < 2; ++side) {
    const float* table = side ? odd : even;
    int64_t m = 0;
    for (; m + V::N < half; m += 2 * V::N) table_columns<V, 2, F>(in, side, table, half, m, out);
    if (m < half) table_columns<V, 1, F>(in, side, table, half, m, out);
  }
}

// Sums and differences of the two sides.
template <typename V>
LR_INLINE void fold(const Halves& from, int64_t half, Halves& to) {
  for (int64_t p = 0; p < half; p += V::N) {
    const V plus = V::load(from[0] + p), minus = V::load(from[1] + p);
    (plus + minus).store(to[0] + p);
    (plus - minus).store(to[1] + p);
  }
}

// D and N at a vector of pairs of nodes, nodes along the lanes.
template <typename V>
LR_INLINE void node_sums(const Sample& s, const float* nodes, int64_t p, Halves* out) {
  const V x = V::load(nodes + p), at = x * V::set1(s.S);
  V total[2], part[2];
  total[0] = total[1] = part[0] = part[1] = V::set1(0);
  for (int64_t j = 0; j < s.r; ++j) {
    V e[2];
    exp2_pair(at * V::set1(s.key[j]), e[0], e[1]);
    const V weight = V::set1(s.weight[j]), valued = V::set1(s.valued[j]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      total[i] = fma(e[i], weight, total[i]);
      part[i] = fma(e[i], valued, part[i]);
    }
  }
  V factor[2];
  node_factors(s, x, factor[0], factor[1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    (total[i] * factor[i]).store(out[0][i] + p);
    (part[i] * factor[i]).store(out[1][i] + p);
  }
}

// The same at the last few pairs, both sides in one vector: 13 instructions instead of 18.
template <typename V>
LR_INLINE void node_sums_of_both(const Sample& s, const float* nodes, int64_t p, Halves* out) {
  constexpr int H = V::N / 2;
  alignas(64) float x[V::N], values[2][V::N];
  for (int l = 0; l < H; ++l) {
    x[l] = nodes[p + l];
    x[l + H] = -nodes[p + l];
  }
  const V places = V::load(x), at = places * V::set1(s.S);
  V total = V::set1(0), part = total, plus, minus;
  for (int64_t j = 0; j < s.r; ++j) {
    const V e = exp2_near(at * V::set1(s.key[j]));
    total = fma(e, V::set1(s.weight[j]), total);
    part = fma(e, V::set1(s.valued[j]), part);
  }
  node_factors(s, places, plus, minus);
  (total * plus).store(values[0]);
  (part * plus).store(values[1]);
  for (int f = 0; f < 2; ++f)
    for (int l = 0; l < H; ++l) {
      out[f][0][p + l] = values[f][l];
      out[f][1][p + l] = values[f][l + H];
    }
}

// Where a query lies in [-1, 1].
template <typename V>
LR_INLINE V place(const Sample& s, const float* q, int64_t left) {
  const float inverse = s.half > 1e-30f ? 1 / s.half : 0;
  return (load_part<V>(q, left) - V::set1(s.middle)) * V::set1(inverse);
}

// T_2m and T_2m+1 at Q vectors of places.
template <typename V, int Q>
struct Polynomials {
  V twice[Q], even[Q], odd[Q];
  LR_METHOD void start(const V* x) {
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      twice[i] = x[i] + x[i];
      even[i] = V::set1(1);
      odd[i] = x[i];
    }
  }
  LR_METHOD void next_even() {
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) even[i] = fms(twice[i], odd[i], even[i]);
  }
  LR_METHOD void next_odd() {
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) odd[i] = fms(twice[i], even[i], odd[i]);
  }
};

// values[f][i] = sum_n c[f]_n T_n(x_i) for F functions at Q vectors of places.
template <typename V, int Q, int F>
LR_INLINE void evaluate(const Halves* c, int64_t half, const V* x, V (*values)[Q]) {
  Polynomials<V, Q> t;
  t.start(x);
#pragma GCC unroll 4
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) values[f][i] = fma(V::set1(c[f][1][0]), x[i], V::set1(c[f][0][0]));
  const auto add = [&](int side, int64_t m, const V* t) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      const V by = V::set1(c[f][side][m]);
#pragma GCC unroll 4
      for (int i = 0; i < Q; ++i) values[f][i] = fma(by, t[i], values[f][i]);
    }
  };
  for (int64_t m = 1; m < half; ++m) {
    t.next_even();
    add(0, m, t.even);
    t.next_odd();
    add(1, m, t.odd);
  }
}

template <typename V, int Q>
LR_INLINE void results(const Sample& s, const Halves* c, const float* q, int64_t left, float* out) {
  V x[Q], value[2][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) x[i] = place<V>(s, q + i * V::N, left - i * V::N);
  evaluate<V, Q, 2>(c, s.P / 2, x, value);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i)
    store_part(value[1][i] / value[0][i] + V::set1(s.mean_v), out + i * V::N, left - i * V::N);
}

// False, and nothing written, where the sample is to be summed exactly.
template <typename V>
static __attribute__((noinline)) bool attend_nodes(const float* q, Range<float> queries,
                                                   Range<float> keys, const float* k,
                                                   const float* v, int64_t r, float scale,
                                                   float* out, float* scratch) {
  constexpr int N = V::N;
  const Sample s = sample_of<V>(queries, keys, k, v, r, scale, scratch);
  if (!s.P) return false;
  alignas(64) Halves at[2], folded[2], c[2];
  const ChebyshevTable& table = chebyshev_table(s.P);
  const int64_t half = s.P / 2;
  int64_t p = 0;
  for (; p + N / 2 < half; p += N) node_sums<V>(s, table.nodes, p, at);
  if (p < half) node_sums_of_both<V>(s, table.nodes, p, at);
  if (!is_level(at[0], half) || !all_finite(at[1][0], half) || !all_finite(at[1][1], half))
    return false;
  for (int f = 0; f < 2; ++f) fold<V>(at[f], half, folded[f]);
  table_products<V, 2>(folded, table.even, table.odd, half, c);
  int64_t i = 0;
  for (; i + N < r; i += 2 * N) results<V, 2>(s, c, q + i, r - i, out + i);
  if (i < r) results<V, 1>(s, c, q + i, r - i, out + i);
  return true;
}

#include "simd/cross_chebyshev_backward.h"

// ---- the choice --------------------------------------------------------------------------

// Double is summed exactly.
LR_INLINE bool by_nodes(const double*, Range<double>, Range<double>, const double*, const double*,
                        int64_t, double, double*, double*) {
  return false;
}
LR_INLINE bool by_nodes(const float* q, Range<float> queries, Range<float> keys, const float* k,
                        const float* v, int64_t r, float scale, float* out, float* scratch) {
  return attend_nodes<f32>(q, queries, keys, k, v, r, scale, out, scratch);
}
LR_INLINE bool by_nodes_backward(const double*, const double*, Range<double>, Range<double>,
                                 const double*, const double*, int64_t, double, double, double*,
                                 double*, double*, double*) {
  return false;
}
LR_INLINE bool by_nodes_backward(const float* g, const float* q, Range<float> queries,
                                 Range<float> keys, const float* k, const float* v, int64_t r,
                                 float scale, float inverse, float* gq, float* gk, float* gv,
                                 float* scratch) {
  return attend_nodes_backward<f32>(g, q, queries, keys, k, v, r, scale, inverse, gq, gk, gv,
                                    scratch);
}

// scale: log2(e) / temperature; inverse: 1 / temperature. scratch: attention_scratch.
template <typename V>
LR_INLINE void attend(const typename V::T* q, const typename V::T* k, const typename V::T* v,
                      int64_t r, typename V::T scale, typename V::T* out, typename V::T* scratch) {
  const Range<typename V::T> keys = range_of<V>(k, r), queries = range_of<V>(q, r);
  if (by_nodes(q, queries, keys, k, v, r, scale, out, scratch)) return;
  if (needs_exact(queries, keys, scale))
    attend_all<V, true>(q, r, keys, k, v, r, scale, out);
  else
    attend_all<V, false>(q, r, keys, k, v, r, scale, out);
}

template <typename V>
LR_INLINE void attend_backward(const typename V::T* g, const typename V::T* q,
                               const typename V::T* k, const typename V::T* v, int64_t r,
                               typename V::T scale, typename V::T inverse, typename V::T* gq,
                               typename V::T* gk, typename V::T* gv, typename V::T* scratch) {
  const Range<typename V::T> keys = range_of<V>(k, r), queries = range_of<V>(q, r);
  if (by_nodes_backward(g, q, queries, keys, k, v, r, scale, inverse, gq, gk, gv, scratch)) return;
  if (needs_exact(queries, keys, scale))
    attend_backward_all<V, true>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  else
    attend_backward_all<V, false>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  for (int64_t i = 0; i < r; ++i) gq[i] *= g[i];
}
