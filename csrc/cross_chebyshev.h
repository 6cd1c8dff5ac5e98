// Attention of one sample at a few Chebyshev nodes instead of at every query, for one
// instruction set.
//
// With tokens of width 1 a query's result depends on the query alone:
//   o(s) = sum_j exp(s k_j) v_j / sum_j exp(s k_j),  s = q_i / temperature.
// So o is computed exactly at P nodes over [s_min, s_max] and interpolated at the r queries:
// P r exponentials instead of r^2, and 2 operations per query and node.
//
// The bound. Where |Im s| <= 2 phi / D with D = k_max - k_min and phi < pi / 2, the terms of
// the denominator differ in phase by at most 2 phi, so it is at least cos(phi) times its value
// at Re s: no zero, o is analytic there and, v taken from the middle of its range V,
// |o| <= V / (2 cos phi). An ellipse around the interval (half-width S) with
// rho = w + sqrt(1 + w^2), w = 2 phi / (D S), lies in that strip, hence (Trefethen,
// Approximation Theory and Approximation Practice, theorem 8.2)
//   |o - interpolant| <= 4 M rho^(1 - P) / (rho - 1),  M = V / (2 cos phi), for every phi.
// kForwardSpread[level] is the largest D S for which the best phi keeps this below V 2^-25.
// Backward the functions interpolated are a query's weights, M = 1 / cos phi, and the
// derivatives of o, M = 1 / cos^2 phi times |s| on the ellipse relative to the interval,
// (rho + 1 / rho) / 2; kBackwardSpread keeps 4 M rho^(1 - P) / (rho - 1) below 2^-25.
//
// Backward is the adjoint: the gradient is spread onto the nodes, the attention's backward is
// run at P nodes, and o' is interpolated for the gradient of q.
//
// One Zen 4 thread, B = 512, q of standard deviation 0.3 and k of 1, ns per sample, nodes
// against exact sum, forward and backward: r = 64: 471 and 605, 1028 and 1238; r = 128: 974
// and 2300, 2100 and 4300; r = 256: 2017 and 8930, 4290 and 15950 (q of 0.1: 949 and 2570).
// Above r / 2 nodes the gain is below 10 %: there the exact sum is taken.

constexpr int kMostNodes = 16 * kChebyshevLevels;

// x_i = (q_i - middle) / half, in [-1, 1].
template <typename T>
struct Interval {
  T middle, half, inverse;
};

template <typename T>
LR_INLINE Interval<T> interval_of(Range<T> q) {
  const T half = (q.high - q.low) / 2;
  return {q.low + half, half, half > T(1e-30) ? 1 / half : T(0)};
}

// out[m] = sum_p in[p] * table[p * P + m]
template <typename V>
LR_INLINE void table_product(const typename V::T* in, const typename V::T* table, int64_t P,
                             typename V::T* out) {
  for (int64_t m = 0; m < P; m += 4 * V::N) {
    V acc[4];
    const int vectors = (int)(P - m < 4 * V::N ? (P - m) / V::N : 4);
    for (int i = 0; i < vectors; ++i) acc[i] = V::set1(0);
    for (int64_t p = 0; p < P; ++p)
      for (int i = 0; i < vectors; ++i)
        acc[i] = fma(V::set1(in[p]), V::load(table + p * P + m + i * V::N), acc[i]);
    for (int i = 0; i < vectors; ++i) acc[i].store(out + m + i * V::N);
  }
}

// out_i = sum_m c_m T_m(x_i), times g_i where given (Clenshaw).
template <typename V, int Q>
LR_INLINE void clenshaw_block(const typename V::T* c, int64_t P, const typename V::T* q,
                              Interval<typename V::T> at, int64_t left, const typename V::T* g,
                              typename V::T* out) {
  constexpr int N = V::N;
  V twice[Q], b1[Q], b2[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const V x = (load_part<V>(q + i * N, left - i * N) - V::set1(at.middle)) * V::set1(at.inverse);
    twice[i] = x + x;
    b1[i] = b2[i] = V::set1(0);
  }
  for (int64_t m = P - 1; m > 0; --m) {
    const V coefficient = V::set1(c[m]);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V next = fma(twice[i], b1[i], coefficient - b2[i]);
      b2[i] = b1[i];
      b1[i] = next;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    V y = fma(twice[i] * V::set1(0.5), b1[i], V::set1(c[0]) - b2[i]);
    if (g) y = y * load_part<V>(g + i * N, left - i * N);
    store_part(y, out + i * N, left - i * N);
  }
}

template <typename V>
LR_INLINE void clenshaw(const typename V::T* c, int64_t P, const typename V::T* q,
                        Interval<typename V::T> at, int64_t r, const typename V::T* g,
                        typename V::T* out) {
  constexpr int N = V::N;
  int64_t i = 0;
  for (; i + 3 * N < r; i += 4 * N)
    clenshaw_block<V, 4>(c, P, q + i, at, r - i, g ? g + i : g, out + i);
  for (; i + N < r; i += 2 * N)
    clenshaw_block<V, 2>(c, P, q + i, at, r - i, g ? g + i : g, out + i);
  if (i < r) clenshaw_block<V, 1>(c, P, q + i, at, r - i, g ? g + i : g, out + i);
}

template <typename V>
LR_INLINE bool all_finite(const typename V::T* x, int64_t n) {
  V odd = V::set1(0);
  for (int64_t i = 0; i < n; i += V::N) {
    const V a = V::load(x + i);
    odd = odd + (a - a);
  }
  return sum(odd) == 0;
}

template <typename V>
LR_INLINE void place_nodes(const float* nodes, int64_t P, Interval<float> at, float* q) {
  for (int64_t p = 0; p < P; p += V::N)
    fma(V::load(nodes + p), V::set1(at.half), V::set1(at.middle)).store(q + p);
}

// False, and nothing written, where values at the nodes are not finite.
template <typename V>
static __attribute__((noinline)) bool attend_nodes(int level, const float* q, Range<float> queries,
                                                   Range<float> keys, const float* k,
                                                   const float* v, int64_t r, float scale,
                                                   float* out) {
  alignas(64) float node[kMostNodes], value[kMostNodes], c[kMostNodes];
  const ChebyshevTable& table = chebyshev_table(level);
  const int64_t P = 16 * level;
  const Interval<float> at = interval_of(queries);
  place_nodes<V>(table.nodes, P, at, node);
  attend_all<V, false>(node, P, keys, k, v, r, scale, value);
  if (!all_finite<V>(value, P)) return false;
  table_product<V>(value, table.to_coefficients, P, c);
  clenshaw<V>(c, P, q, at, r, nullptr, out);
  return true;
}

// t[m] = sum_i g_i T_m(x_i). partial: P vectors.
template <typename V, int Q>
LR_INLINE void spread_block(const float* g, const float* q, Interval<float> at, int64_t left,
                            int64_t P, float* partial) {
  constexpr int N = V::N;
  V twice[Q], before[Q], now[Q];
  V first = V::set1(0), second = V::set1(0);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const V x = (load_part<V>(q + i * N, left - i * N) - V::set1(at.middle)) * V::set1(at.inverse);
    twice[i] = x + x;
    before[i] = load_part<V>(g + i * N, left - i * N);
    now[i] = before[i] * x;
    first = first + before[i];
    second = second + now[i];
  }
  (V::load(partial) + first).store(partial);
  (V::load(partial + N) + second).store(partial + N);
  for (int64_t m = 2; m < P; ++m) {
    V total = V::load(partial + m * N);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V next = fma(twice[i], now[i], V::set1(0) - before[i]);
      before[i] = now[i];
      now[i] = next;
      total = total + next;
    }
    total.store(partial + m * N);
  }
}

template <typename V>
static __attribute__((noinline)) void spread(const float* g, const float* q, Interval<float> at,
                                             int64_t r, int64_t P, float* t) {
  constexpr int N = V::N;
  alignas(64) float partial[kMostNodes * N];
  for (int64_t i = 0; i < P * N; ++i) partial[i] = 0;
  int64_t i = 0;
  for (; i + 3 * N < r; i += 4 * N) spread_block<V, 4>(g + i, q + i, at, r - i, P, partial);
  for (; i < r; i += N) spread_block<V, 1>(g + i, q + i, at, r - i, P, partial);
  for (int64_t m = 0; m < P; m += N) {
    V block[N];
#pragma GCC unroll 16
    for (int l = 0; l < N; ++l) block[l] = V::load(partial + (m + l) * N);
    sums(block).store(t + m);
  }
}

// False where the spread gradient is not finite; gk and gv may have been written then.
template <typename V>
static __attribute__((noinline)) bool attend_nodes_backward(int level, const float* g,
                                                            const float* q, Range<float> queries,
                                                            Range<float> keys, const float* k,
                                                            const float* v, int64_t r, float scale,
                                                            float inverse, float* gq, float* gk,
                                                            float* gv, float* scratch) {
  alignas(64) float node[kMostNodes], weight[kMostNodes], slope[kMostNodes], c[kMostNodes];
  const ChebyshevTable& table = chebyshev_table(level);
  const int64_t P = 16 * level;
  const Interval<float> at = interval_of(queries);
  place_nodes<V>(table.nodes, P, at, node);
  spread<V>(g, q, at, r, P, c);
  table_product<V>(c, table.to_nodes, P, weight);
  if (!all_finite<V>(weight, P)) return false;
  attend_backward_all<V, false>(weight, node, P, keys, k, v, r, scale, inverse, slope, gk, gv,
                                scratch);
  if (!all_finite<V>(slope, P)) return false;
  table_product<V>(slope, table.to_coefficients, P, c);
  clenshaw<V>(c, P, q, at, r, g, gq);
  return true;
}

// ---- the choice --------------------------------------------------------------------------

template <typename T>
LR_INLINE int level_of(const float* limits, Range<T> q, Range<T> k, T inverse, int64_t r) {
  if (sizeof(T) != sizeof(float)) return 0;  // double is summed exactly
  return chebyshev_level(limits, (float)((q.high - q.low) / 2 * (k.high - k.low) * inverse), r);
}

LR_INLINE bool by_nodes(int level, const float* q, Range<float> queries, Range<float> keys,
                        const float* k, const float* v, int64_t r, float scale, float* out) {
  return level && attend_nodes<f32>(level, q, queries, keys, k, v, r, scale, out);
}
LR_INLINE bool by_nodes(int, const double*, Range<double>, Range<double>, const double*,
                        const double*, int64_t, double, double*) {
  return false;
}
LR_INLINE bool by_nodes_backward(int level, const float* g, const float* q, Range<float> queries,
                                 Range<float> keys, const float* k, const float* v, int64_t r,
                                 float scale, float inverse, float* gq, float* gk, float* gv,
                                 float* scratch) {
  return level && attend_nodes_backward<f32>(level, g, q, queries, keys, k, v, r, scale, inverse,
                                             gq, gk, gv, scratch);
}
LR_INLINE bool by_nodes_backward(int, const double*, const double*, Range<double>, Range<double>,
                                 const double*, const double*, int64_t, double, double, double*,
                                 double*, double*, double*) {
  return false;
}

// scale: log2(e) / temperature; inverse: 1 / temperature.
template <typename V>
LR_INLINE void attend(const typename V::T* q, const typename V::T* k, const typename V::T* v,
                      int64_t r, typename V::T scale, typename V::T inverse, typename V::T* out) {
  const Range<typename V::T> keys = range_of<V>(k, r), queries = range_of<V>(q, r);
  if (needs_exact(queries, keys, scale))
    return attend_all<V, true>(q, r, keys, k, v, r, scale, out);
  const int level = level_of(kForwardSpread, queries, keys, inverse, r);
  if (by_nodes(level, q, queries, keys, k, v, r, scale, out)) return;
  attend_all<V, false>(q, r, keys, k, v, r, scale, out);
}

template <typename V>
LR_INLINE void attend_backward(const typename V::T* g, const typename V::T* q,
                               const typename V::T* k, const typename V::T* v, int64_t r,
                               typename V::T scale, typename V::T inverse, typename V::T* gq,
                               typename V::T* gk, typename V::T* gv, typename V::T* scratch) {
  const Range<typename V::T> keys = range_of<V>(k, r), queries = range_of<V>(q, r);
  const bool exact = needs_exact(queries, keys, scale);
  const int level = exact ? 0 : level_of(kBackwardSpread, queries, keys, inverse, r);
  if (by_nodes_backward(level, g, q, queries, keys, k, v, r, scale, inverse, gq, gk, gv, scratch))
    return;
  if (exact)
    attend_backward_all<V, true>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  else
    attend_backward_all<V, false>(g, q, r, keys, k, v, r, scale, inverse, gq, gk, gv, scratch);
  for (int64_t i = 0; i < r; ++i) gq[i] *= g[i];
}
