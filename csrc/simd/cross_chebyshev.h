// Attention of one sample at a few Chebyshev nodes, for one instruction set: the interpolation of
// the forward, and the choice between nodes and the exact sum. cross_chebyshev_bound.h explains the
// interpolated functions and the bound.

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
template <int Q, int F>
LR_INLINE void table_columns(const Halves* in, int side, const float* table, int64_t half,
                             int64_t m, Halves* out) {
  f32 acc[F][Q];
#pragma GCC unroll 8
  for (int i = 0; i < F * Q; ++i) acc[i / Q][i % Q] = f32::set1(0);
  for (int64_t p = 0; p < half; ++p) {
    f32 row[Q];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) row[i] = f32::load(table + p * kHalf + m + i * f32::N);
#pragma GCC unroll 8
    for (int i = 0; i < F * Q; ++i)
      acc[i / Q][i % Q] = fma(f32::set1(in[i / Q][side][p]), row[i % Q], acc[i / Q][i % Q]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < F * Q; ++i) acc[i / Q][i % Q].store(out[i / Q][side] + m + i % Q * f32::N);
}
template <int F>
LR_INLINE void table_products(const Halves* in, const float* even, const float* odd, int64_t half,
                              Halves* out) {
  for (int side = 0; side < 2; ++side) {
    const float* table = side ? odd : even;
    int64_t m = 0;
    for (; m + f32::N < half; m += 2 * f32::N) table_columns<2, F>(in, side, table, half, m, out);
    if (m < half) table_columns<1, F>(in, side, table, half, m, out);
  }
}

// Sums and differences of the two sides.
LR_INLINE void fold(const Halves& from, int64_t half, Halves& to) {
  for (int64_t p = 0; p < half; p += f32::N) {
    const f32 plus = f32::load(from[0] + p), minus = f32::load(from[1] + p);
    (plus + minus).store(to[0] + p);
    (plus - minus).store(to[1] + p);
  }
}

// D and N at a vector of pairs of nodes, nodes along the lanes.
LR_INLINE void node_sums(const Sample& s, const float* nodes, int64_t p, Halves* out) {
  const f32 x = f32::load(nodes + p), at = x * f32::set1(s.S);
  f32 total[2], part[2];
  total[0] = total[1] = part[0] = part[1] = f32::set1(0);
  for (int64_t j = 0; j < s.r; ++j) {
    f32 e[2];
    exp2_pair(at * f32::set1(s.key[j]), e[0], e[1]);
    const f32 weight = f32::set1(s.weight[j]), valued = f32::set1(s.valued[j]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      total[i] = fma(e[i], weight, total[i]);
      part[i] = fma(e[i], valued, part[i]);
    }
  }
  f32 factor[2];
  node_factors(s, x, factor[0], factor[1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    (total[i] * factor[i]).store(out[0][i] + p);
    (part[i] * factor[i]).store(out[1][i] + p);
  }
}

// The same at the last few pairs, both sides in one vector: 13 instructions instead of 18.
LR_INLINE void node_sums_of_both(const Sample& s, const float* nodes, int64_t p, Halves* out) {
  constexpr int H = f32::N / 2;
  alignas(64) float x[f32::N], values[2][f32::N];
  for (int l = 0; l < H; ++l) {
    x[l] = nodes[p + l];
    x[l + H] = -nodes[p + l];
  }
  const f32 places = f32::load(x), at = places * f32::set1(s.S);
  f32 total = f32::set1(0), part = total, plus, minus;
  for (int64_t j = 0; j < s.r; ++j) {
    const f32 e = exp2_near(at * f32::set1(s.key[j]));
    total = fma(e, f32::set1(s.weight[j]), total);
    part = fma(e, f32::set1(s.valued[j]), part);
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
LR_INLINE f32 place(const Sample& s, const float* q, int64_t left) {
  const float inverse = s.half > 1e-30f ? 1 / s.half : 0;
  return (load_part(q, left) - f32::set1(s.middle)) * f32::set1(inverse);
}

// T_2m and T_2m+1 at Q vectors of places.
template <int Q>
struct Polynomials {
  f32 twice[Q], even[Q], odd[Q];
  LR_METHOD void start(const f32* x) {
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      twice[i] = x[i] + x[i];
      even[i] = f32::set1(1);
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
template <int Q, int F>
LR_INLINE void evaluate(const Halves* c, int64_t half, const f32* x, f32 (*values)[Q]) {
  Polynomials<Q> t;
  t.start(x);
#pragma GCC unroll 4
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i)
      values[f][i] = fma(f32::set1(c[f][1][0]), x[i], f32::set1(c[f][0][0]));
  const auto add = [&](int side, int64_t m, const f32* t) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      const f32 by = f32::set1(c[f][side][m]);
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

template <int Q>
LR_INLINE void results(const Sample& s, const Halves* c, const float* q, int64_t left, float* out) {
  f32 x[Q], value[2][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) x[i] = place(s, q + i * f32::N, left - i * f32::N);
  evaluate<Q, 2>(c, s.P / 2, x, value);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i)
    store_part(value[1][i] / value[0][i] + f32::set1(s.mean_v), out + i * f32::N,
               left - i * f32::N);
}

// False, and nothing written, where the sample is to be summed exactly.
static __attribute__((noinline)) bool attend_nodes(const float* q, Range<float> queries,
                                                   Range<float> keys, const float* k,
                                                   const float* v, int64_t r, float scale,
                                                   float* out, float* scratch) {
  constexpr int N = f32::N;
  const Sample s = sample_of(queries, keys, k, v, r, scale, scratch);
  if (!s.P) return false;
  alignas(64) Halves at[2], folded[2], c[2];
  const ChebyshevTable& table = chebyshev_table(s.P);
  const int64_t half = s.P / 2;
  int64_t p = 0;
  for (; p + N / 2 < half; p += N) node_sums(s, table.nodes, p, at);
  if (p < half) node_sums_of_both(s, table.nodes, p, at);
  if (!is_level(at[0], half) || !all_finite(at[1][0], half) || !all_finite(at[1][1], half))
    return false;
  for (int f = 0; f < 2; ++f) fold(at[f], half, folded[f]);
  table_products<2>(folded, table.even, table.odd, half, c);
  int64_t i = 0;
  for (; i + N < r; i += 2 * N) results<2>(s, c, q + i, r - i, out + i);
  if (i < r) results<1>(s, c, q + i, r - i, out + i);
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
  return attend_nodes(q, queries, keys, k, v, r, scale, out, scratch);
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
  return attend_nodes_backward(g, q, queries, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
}

// scale: log2(e) / temperature; inverse: 1 / temperature. scratch: attention_scratch.
template <typename T>
LR_INLINE void attend(const T* q, const T* k, const T* v, int64_t r, T scale, T* out, T* scratch) {
  const Range<T> keys = range_of(k, r), queries = range_of(q, r);
  if (by_nodes(q, queries, keys, k, v, r, scale, out, scratch)) return;
  if (needs_exact(queries, keys, scale))
    attend_all<T, true>(q, r, keys, k, v, r, scale, out);
  else
    attend_all<T, false>(q, r, keys, k, v, r, scale, out);
}

template <typename T>
LR_INLINE void attend_backward(const T* g, const T* q, const T* k, const T* v, int64_t r, T scale,
                               T inverse, T* gq, T* gk, T* gv, T* scratch) {
  const Range<T> keys = range_of(k, r), queries = range_of(q, r);
  if (by_nodes_backward(g, q, queries, keys, k, v, r, scale, inverse, gq, gk, gv, scratch)) return;
  if (needs_exact(queries, keys, scale))
    attend_backward_all<T, true>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  else
    attend_backward_all<T, false>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  for (int64_t i = 0; i < r; ++i) gq[i] *= g[i];
}
