// Attention of one sample at a few Chebyshev nodes instead of at every query, for one
// instruction set.
//
// With tokens of width 1 a query's result depends on the query alone, with s = q_i / temperature
//   o(s) = N(s) / D(s),  D(s) = sum_j exp(s k_j),  N(s) = sum_j exp(s k_j) v_j.
// o has poles where D is 0, but N and D are entire. With the middle of the queries at 0, keys and
// values taken from their means under the middle's weights, S half the width of the queries and
// x = s / S, both are multiplied by the same exp(-b x - A x^2), which o does not feel. A and b are
// chosen so that D is 1 at -1, 0 and 1: what is left to interpolate is nearly constant. Both are
// computed at P nodes and interpolated at the r queries: P r exponentials instead of r^2, and 3
// operations per query and node. Nodes come in pairs +-x whose exponentials 2^(tk) and 2^(-tk)
// share all but the last of 7 steps. q and k of standard deviation 1 take 22 nodes at r = 64 and 26
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
// v). Rounding grows with the range of D: where it passes kMostRange at the nodes the sample is
// summed exactly, and at once where L might span kMostSpread. Keys whose weight at the middle is
// below 2^-80 count as 2^-80, at most r 2^-40 of D.
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

// t = n + fraction, n whole; returns what 2^n adds to an exponent.
LR_INLINE f32 round_with_bits(f32 t, f32& fraction) {
  const f32 magic = f32::set1(12582912.0f), moved = t + magic;
  fraction = t - (moved - magic);
  return to_exponent(moved);
}
// 2^t, and 2^t and 2^-t, for |t| < 126: no clamp, no product with 2^n.
LR_INLINE f32 exp2_near(f32 t) {
  f32 f;
  const f32 power = round_with_bits(t, f);
  return add_bits(exp2_fraction(f), power);
}
LR_INLINE void exp2_pair(f32 t, f32& up, f32& down) {
  f32 f;
  const f32 power = round_with_bits(t, f), ff = f * f;
  const f32 even = fma(fma(f32::set1(kExp2[1]), ff, f32::set1(kExp2[3])), ff, f32::set1(kExp2[5]));
  const f32 odd = fma(fma(f32::set1(kExp2[0]), ff, f32::set1(kExp2[2])), ff, f32::set1(kExp2[4]));
  up = add_bits(fma(f, odd, even), power);
  down = subtract_bits(fnma(f, odd, even), power);
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
