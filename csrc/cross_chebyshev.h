// Attention of one sample at a few Chebyshev nodes instead of at every query, for one
// instruction set.
//
// With tokens of width 1 a query's result depends on the query alone:
//   o(s) = N(s) / D(s),  D(s) = sum_j exp(s k_j),  N(s) = sum_j exp(s k_j) v_j,  s = q_i /
//   temperature.
// o has poles where D is 0, but N and D are entire. With the middle of the queries at 0, keys and
// values taken from their means under the middle's weights, S half the width of the queries and
// x = s / S, both are multiplied by the same exp(-b x - A x^2), which o does not feel. A and b are
// chosen so that D is 1 at -1, 0 and 1: what is left to interpolate is nearly constant. Both are
// computed at P nodes and interpolated at the r queries: P r exponentials instead of r^2, and 3
// operations per query and node. Nodes come in pairs +-x whose exponentials 2^(tk) and 2^(-tk)
// share all but the last of 7 steps. q and k of standard deviation 1 take 24 nodes at r = 64 and 32
// at r = 256; interpolating o itself took 96 there, and was no gain at r = 64.
//
// The bound. Let L(x) = log(exp(-b x - A x^2) D) on [-1, 1], up = log D at 1, down = log D at -1,
// before the multiplication: log D is convex, at least 0 (the keys' mean is 0), and its slope is
// between those of the extreme keys, low and high. So
//   L >= max(0, up - (1 - x) high) - b x - A x^2 for x >= 0, and its mirror: smallest at the
//   corner; L <= A / 4, from the chords.
// In the complex plane |D(x + iy)| <= D(x) and |exp(-A (x + iy)^2)| = exp(-A x^2 + A y^2). On an
// ellipse with half axes a and h, rho = a + h, beyond 1 again by slopes: L <= M, the maxima of
// three parabolas. Then (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2)
//   |error of D| <= E min D,  E = 4 rho^(1 - P) / (rho - 1) exp(M - min L),
// |error of N| <= E (range of v) min D, and o is off by less than 2 E (range of v): P is the least
// for which E <= 2^-26 on one of 8 ellipses. Backward interpolates the same functions and those
// with k_j in front, and its adjoint: weights are off by 2 E, slopes by 4 E (range of k) (range of
// v). Rounding grows by the spread of L: samples where it could pass kMostSpread are summed
// exactly. Keys whose weight at the middle is below 2^-80 count as 2^-80, at most r 2^-40 of D.
//
// Backward is the adjoint: the gradient is spread onto the nodes, and goes from there to k and v.
//
// All exponents are of 2.
//
// Tried and dropped, AVX2: nodes one by one instead of in pairs (5.2 cycles for 8 exponentials, 4.1
// in pairs); Clenshaw's recurrence (4 operations a term for N and D, not 3); polynomials of even
// and odd degree as two chains (4 registers more a vector); three vectors of queries at once (they
// no longer fit the registers; two take 1.9 cycles a vector and term of the 1.5 that 3 operations
// can).

constexpr float kMostSpread = 7.2f, kMostRange = 4.0f;
constexpr float kMostExponent = 40.0f;  // half the queries' range times the keys'
constexpr float kLeastWeight = -80.0f;
constexpr int64_t kMostKeys = 1 << 14, kLeastQueries = 32;

// p * 2^n and p * 2^-n where `moved` is n + 1.5 * 2^23: n is added to the exponent.
#if LIRANK_ISA == 512
LR_INLINE __m512i power_of(f32 moved) {
  return _mm512_slli_epi32(_mm512_castps_si512(moved.v), 23);
}
LR_INLINE f32 times_power(f32 p, f32 moved) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), power_of(moved)))};
}
LR_INLINE f32 over_power(f32 p, f32 moved) {
  return {_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(p.v), power_of(moved)))};
}
#elif LIRANK_ISA == 256
LR_INLINE __m256i power_of(f32 moved) {
  return _mm256_slli_epi32(_mm256_castps_si256(moved.v), 23);
}
LR_INLINE f32 times_power(f32 p, f32 moved) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), power_of(moved)))};
}
LR_INLINE f32 over_power(f32 p, f32 moved) {
  return {_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(p.v), power_of(moved)))};
}
#else
LR_INLINE f32 times_power(f32 p, f32 moved) {
  return {(f32::V)((PlainInts)p.v + ((PlainInts)moved.v << 23))};
}
LR_INLINE f32 over_power(f32 p, f32 moved) {
  return {(f32::V)((PlainInts)p.v - ((PlainInts)moved.v << 23))};
}
#endif

// 2^t and 2^-t for |t| < 126.
LR_INLINE void exp2_pair(f32 t, f32& up, f32& down) {
  const f32 magic = f32::set1(12582912.0f), moved = t + magic, f = t - (moved - magic), ff = f * f;
  f32 even = fma(f32::set1(0.009671512991189957f), ff, f32::set1(0.24022242426872253f));
  f32 odd = fma(f32::set1(0.0013264728477224708f), ff, f32::set1(0.05550733581185341f));
  even = fma(even, ff, f32::set1(1.0f));
  odd = fma(odd, ff, f32::set1(0.6931470036506653f));
  up = times_power(fma(f, odd, even), moved);
  down = over_power(fnma(f, odd, even), moved);
}
LR_INLINE f32 exp2_near(f32 t) {
  const f32 magic = f32::set1(12582912.0f), moved = t + magic, f = t - (moved - magic);
  f32 p = f32::set1(0.0013264728477224708f);
  p = fma(p, f, f32::set1(0.009671512991189957f));
  p = fma(p, f, f32::set1(0.05550733581185341f));
  p = fma(p, f, f32::set1(0.24022242426872253f));
  p = fma(p, f, f32::set1(0.6931470036506653f));
  p = fma(p, f, f32::set1(1.0f));
  return times_power(p, moved);
}

LR_INLINE float larger(float a, float b) { return a > b ? a : b; }
LR_INLINE float smaller(float a, float b) { return a < b ? a : b; }

// One sample, keys laid out for the sums over them.
struct Sample {
  int P;                         // nodes, 0: to be summed exactly
  int64_t r, padded;             // keys; padded to whole vectors with keys of weight 0
  float middle, half;            // of the queries
  float S;                       // exponent of 2 at x = 1 per unit of key
  float mean_v, b, A, total;     // means at the middle; total: D at the middle
  float *key, *weight, *valued;  // k - mean_k; 2^(exponent at the middle); that times v - mean_v
};

// The nodes that the bound asks for (see above), 0 where rounding would grow too much.
template <typename V>
LR_INLINE int nodes_for(float up, float down, float low, float high) {
  const float A = (up + down) / 2, b = (up - down) / 2;
  const float right = high > 0 ? 1 - up / high : 0, left = low > 0 ? 1 - down / low : 0;
  const float least = smaller(0, smaller(-right * (b + A * right), left * (b - A * left)));
  if (!(A / 4 - least <= kMostSpread)) return 0;
  const Ellipses& all = ellipses();
  const V one = V::set1(1), curved = V::set1(A);
  V fewest = V::set1(1e9f);
  for (int i = 0; i < kEllipses; i += V::N) {
    const V a = V::load(all.real + i), h = V::load(all.imaginary + i), aa = a * a, hh = h * h;
    const V curve = curved * (aa + hh) / aa + V::set1(1e-20f), half = one / (curve + curve);
    V highest = curved * V::set1(0.25f) * aa / (aa + hh);
    const auto beyond = [&](float end, float slope, float b) __attribute__((always_inline)) {
      const V x = max(one, min(a, V::set1(slope - b) * half));
      const V line = fma(x - one, V::set1(slope), V::set1(end)) - x * V::set1(b);
      highest = max(highest, line - curve * x * x);
    };
    beyond(up, high, b);
    beyond(down, low, -b);
    const V bits = V::set1(26.01f - least) + V::load(all.lead + i) + fma(curved, hh, highest);
    fewest = min(fewest, fma(bits, V::load(all.nodes + i), one));
  }
  const float wanted = lane_min(fewest);
  if (!(wanted <= (float)kMostNodes)) return 0;
  const int P = ((int)wanted + 2) / 2 * 2;
  return P < 8 ? 8 : P;
}

// Lays out a sample's keys and chooses its nodes. scratch: 3 * padded.
template <typename V>
static __attribute__((noinline)) Sample sample_of(Range<float> queries, Range<float> keys,
                                                  const float* k, const float* v, int64_t r,
                                                  float scale, float* scratch) {
  constexpr int N = V::N;
  Sample s;
  s.P = 0;
  s.r = r;
  s.padded = (r + N - 1) / N * N;
  s.key = scratch;
  s.weight = scratch + s.padded;
  s.valued = s.weight + s.padded;
  s.half = (queries.high - queries.low) / 2;
  s.middle = queries.low + s.half;
  s.S = s.half * scale;
  if (r < kLeastQueries || r > kMostKeys || !(s.S * (keys.high - keys.low) <= kMostExponent))
    return s;
  const float at_middle = s.middle * scale, top = at_middle > 0 ? keys.high : keys.low;
  V total = V::set1(0), of_k = total, of_v = total;
  for (int64_t j = 0; j < s.padded; j += N) {
    const int64_t left = r - j;
    const V key = load_part<V>(k + j, left) - V::set1(top);
    V w = exp2_near(max(V::set1(kLeastWeight), V::set1(at_middle) * key));
    if (left < N) w = keep_first(w, left);
    w.store(s.weight + j);
    total = total + w;
    of_k = fma(w, key, of_k);
    of_v = fma(w, load_part<V>(v + j, left), of_v);
  }
  s.total = sum(total);
  const float share = 1 / s.total, from_top = sum(of_k) * share;
  s.mean_v = sum(of_v) * share;
  if (!(from_top - from_top + (s.mean_v - s.mean_v) == 0)) return s;
  V at_high = V::set1(0), at_low = at_high;
  for (int64_t j = 0; j < s.padded; j += N) {
    const int64_t left = r - j;
    const V key = load_part<V>(k + j, left) - V::set1(top) - V::set1(from_top);
    const V value = load_part<V>(v + j, left) - V::set1(s.mean_v), w = V::load(s.weight + j);
    (left < N ? keep_first(key, left) : key).store(s.key + j);
    (w * value).store(s.valued + j);
    V up, down;
    exp2_pair(key * V::set1(s.S), up, down);
    at_high = fma(w, up, at_high);
    at_low = fma(w, down, at_low);
  }
  const float up = larger(0, __builtin_log2f(sum(at_high) * share));
  const float down = larger(0, __builtin_log2f(sum(at_low) * share));
  s.A = (up + down) / 2;
  s.b = (up - down) / 2;
  const float high = (keys.high - top) - from_top, low = (keys.low - top) - from_top;
  const int P = nodes_for<V>(up, down, -low * s.S, high * s.S);
  if (2 * P <= r) s.P = P;
  return s;
}

// exp(-b x - A x^2) / D(0) at x and at -x.
template <typename V>
LR_INLINE void node_factors(const Sample& s, V x, V& plus, V& minus) {
  const V share = V::set1(1 / s.total), slope = V::set1(s.b) * x, curve = V::set1(s.A) * x * x;
  plus = exp2_near(V::set1(0) - (slope + curve)) * share;
  minus = exp2_near(slope - curve) * share;
}

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

// ---- backward ----------------------------------------------------------------------------

// 2^(tk) and 2^(-tk) of a pair of nodes into e (2 rows), and the sums over keys of D, N and both
// with the key in front, still spread over the lanes: sums_of[(4 * side + function) * N].
template <typename V>
LR_INLINE void node_rows(const Sample& s, const float* keyed, const float* both, float x, float* e,
                         V* sums_of) {
  const V at = V::set1(x * s.S);
  V total[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) total[i] = V::set1(0);
  for (int64_t j = 0; j < s.padded; j += V::N) {
    V a[2];
    exp2_pair(at * V::load(s.key + j), a[0], a[1]);
    const V by[] = {V::load(s.weight + j), V::load(s.valued + j), V::load(keyed + j),
                    V::load(both + j)};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      a[i].store(e + i * s.padded + j);
#pragma GCC unroll 4
      for (int f = 0; f < 4; ++f) total[4 * i + f] = fma(a[i], by[f], total[4 * i + f]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sums_of[i * V::N] = total[i];
}

// Gradients of Q vectors of queries, and what goes back into N and D.
template <typename V, int Q>
LR_INLINE void query_gradients(const Sample& s, const Halves* c, const float* g, const float* q,
                               int64_t left, float inverse, float* gq, float* to_N, float* to_D) {
  V x[Q], value[4][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) x[i] = place<V>(s, q + i * V::N, left - i * V::N);
  evaluate<V, Q, 4>(c, s.P / 2, x, value);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const V share = V::set1(1) / value[0][i], o = value[1][i] * share;
    const V grad = load_part<V>(g + i * V::N, left - i * V::N);
    const V slope = (value[3][i] - o * value[2][i]) * share;
    store_part(grad * slope * V::set1(inverse), gq + i * V::N, left - i * V::N);
    (grad * share).store(to_N + i * V::N);
    (V::set1(0) - grad * share * o).store(to_D + i * V::N);
  }
}

// Adds sum_i w_i T_n(x_i), over the lanes, to partial[2 n] and partial[2 n + 1] for both weights.
template <typename V, int Q>
LR_INLINE void spread(const Sample& s, const float* q, int64_t left, const float* to_N,
                      const float* to_D, float* partial) {
  constexpr int N = V::N;
  V x[Q], weight[2][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    x[i] = place<V>(s, q + i * N, left - i * N);
    weight[0][i] = V::load(to_N + i * N);
    weight[1][i] = V::load(to_D + i * N);
  }
  const auto add = [&](int64_t n, const V* t) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int f = 0; f < 2; ++f) {
      V total = V::load(partial + (2 * n + f) * N);
#pragma GCC unroll 4
      for (int i = 0; i < Q; ++i) total = fma(weight[f][i], t[i], total);
      total.store(partial + (2 * n + f) * N);
    }
  };
  Polynomials<V, Q> t;
  t.start(x);
  for (int64_t n = 0; n < s.P; n += 2) {
    if (n) t.next_even();
    add(n, t.even);
    if (n) t.next_odd();
    add(n + 1, t.odd);
  }
}

// gv_j = sum_p n_p e_pj and gk_j = sum_p (n_p v_j + d_p) s_p e_pj for Q vectors of keys; the keys'
// own weights at the end. w: n, n s and d s of row 2 p and 2 p + 1.
template <typename V, int Q>
LR_INLINE void key_gradients(const Sample& s, const float (*w)[kMostNodes], const float* e,
                             int64_t j, float* gk, float* gv) {
  V first[Q], second[Q], third[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) first[i] = second[i] = third[i] = V::set1(0);
  for (int64_t p = 0; p < s.P; ++p) {
    const V n = V::set1(w[0][p]), ns = V::set1(w[1][p]), ds = V::set1(w[2][p]);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const V a = V::load(e + p * s.padded + j + i * V::N);
      first[i] = fma(a, n, first[i]);
      second[i] = fma(a, ns, second[i]);
      third[i] = fma(a, ds, third[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i, j += V::N) {
    const V weight = V::load(s.weight + j), valued = V::load(s.valued + j);
    store_part(first[i] * weight, gv + j, s.r - j);
    store_part(fma(second[i], valued, third[i] * weight), gk + j, s.r - j);
  }
}

// False where the sample is to be summed exactly; what was written then is not valid.
template <typename V>
static __attribute__((noinline)) bool attend_nodes_backward(const float* g, const float* q,
                                                            Range<float> queries, Range<float> keys,
                                                            const float* k, const float* v,
                                                            int64_t r, float scale, float inverse,
                                                            float* gq, float* gk, float* gv,
                                                            float* scratch) {
  constexpr int N = V::N;
  const Sample s = sample_of<V>(queries, keys, k, v, r, scale, scratch);
  if (!s.P) return false;
  float *keyed = scratch + 3 * s.padded, *both = keyed + s.padded, *to_N = both + s.padded;
  float *to_D = to_N + s.padded, *e = to_D + s.padded;
  alignas(64) Halves at[4], folded[4], c[4];
  alignas(64) float partial[2 * kMostNodes * N], rows_of[3][kMostNodes];
  const ChebyshevTable& table = chebyshev_table(s.P);
  const int64_t half = s.P / 2;
  for (int64_t j = 0; j < s.padded; j += N) {
    (V::load(s.key + j) * V::load(s.weight + j)).store(keyed + j);
    (V::load(s.key + j) * V::load(s.valued + j)).store(both + j);
  }
  V plus[kHalf / N], minus[kHalf / N];
  for (int64_t p = 0; p < half; p += N) {
    V rows[8 * N];
    for (int l = 0; l < N; ++l) {
      const int64_t pair = p + l < half ? p + l : half - 1;  // the last one again, unused
      node_rows<V>(s, keyed, both, table.nodes[pair], e + 2 * pair * s.padded, rows + l);
    }
    node_factors(s, V::load(table.nodes + p), plus[p / N], minus[p / N]);
    for (int f = 0; f < 4; ++f) {
      (sums(rows + f * N) * plus[p / N]).store(at[f][0] + p);
      (sums(rows + (4 + f) * N) * minus[p / N]).store(at[f][1] + p);
    }
  }
  if (!is_level(at[0], half)) return false;
  for (int f = 1; f < 4; ++f)
    if (!all_finite(at[f][0], half) || !all_finite(at[f][1], half)) return false;
  for (int f = 0; f < 4; ++f) fold<V>(at[f], half, folded[f]);
  table_products<V, 2>(folded, table.even, table.odd, half, c);
  table_products<V, 2>(folded + 2, table.even, table.odd, half, c + 2);
  int64_t i = 0;
  for (; i + N < r; i += 2 * N)
    query_gradients<V, 2>(s, c, g + i, q + i, r - i, inverse, gq + i, to_N + i, to_D + i);
  if (i < r) query_gradients<V, 1>(s, c, g + i, q + i, r - i, inverse, gq + i, to_N + i, to_D + i);
  const int64_t lanes = (half + N - 1) / N * N;
  for (int64_t m = 0; m < 4 * lanes * N; m += N) V::set1(0).store(partial + m);
  for (i = 0; i + 2 * N < r; i += 3 * N) spread<V, 3>(s, q + i, r - i, to_N + i, to_D + i, partial);
  for (; i < r; i += N) spread<V, 1>(s, q + i, r - i, to_N + i, to_D + i, partial);
  for (int64_t m = 0; m < half; m += N)
    for (int f = 0; f < 4; ++f) {  // even of N, even of D, odd of N, odd of D
      V rows[N];
      for (int l = 0; l < N; ++l) rows[l] = V::load(partial + (4 * (m + l) + f) * N);
      sums(rows).store(at[f % 2][f / 2] + m);
    }
  table_products<V, 2>(at, table.even_turned, table.odd_turned, half, folded);
  for (int f = 0; f < 2; ++f) fold<V>(folded[f], half, c[f]);
  for (int64_t p = 0; p < half; ++p)
    for (int side = 0; side < 2; ++side) {
      float factor[N];
      (side ? minus : plus)[p / N].store(factor);
      const float x = side ? -table.nodes[p] : table.nodes[p];
      const float score = (x * s.half + s.middle) * inverse;
      const float n = c[0][side][p] * factor[p % N], d = c[1][side][p] * factor[p % N];
      rows_of[0][2 * p + side] = n;
      rows_of[1][2 * p + side] = n * score;
      rows_of[2][2 * p + side] = d * score;
    }
  if (!all_finite(rows_of[1], s.P) || !all_finite(rows_of[2], s.P)) return false;
  for (i = 0; i + 2 * N < s.padded; i += 3 * N) key_gradients<V, 3>(s, rows_of, e, i, gk, gv);
  for (; i < s.padded; i += N) key_gradients<V, 1>(s, rows_of, e, i, gk, gv);
  return true;
}

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
