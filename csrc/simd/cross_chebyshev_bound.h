// Attention of one sample at a few Chebyshev nodes instead of at every query, for one instruction
// set: the functions, their bound, and the choice of the nodes.
//
// What is interpolated. With tokens of width 1 the result of a query depends only on that query.
// With s = q_i / temperature it is
//   o(s) = N(s) / D(s),  D(s) = sum_j exp(s k_j),  N(s) = sum_j exp(s k_j) v_j.
// o has poles where D is 0, but N and D are entire functions. So N and D are computed at P nodes
// and interpolated at the r queries. That takes P r exponentials instead of r^2, and 3 operations
// per query and node. Nodes come in pairs +-x, whose exponentials 2^(tk) and 2^(-tk) share all but
// the last of 7 steps. If q and k have a standard deviation of 1, 22 nodes are enough at r = 64 and
// 26 at r = 256.
//
// Normalization. The middle of the queries is moved to 0, S is half the width of their range, and
// x = s / S. Keys and values are taken relative to their means under the softmax weights of the
// middle. N and D are both multiplied by exp(-b x - A x^2). The factor cancels in o = N / D. A and
// b make D equal to 1 at x = -1, 0 and 1, so the functions to interpolate are nearly constant.
//
// The bound. Let L(x) = log(exp(-b x - A x^2) D) on [-1, 1], and let up and down be log D at 1 and
// -1 before that multiplication. log D is convex, it is at least 0 because the mean of the keys is
// 0, and its slope is between those of the extreme keys, low and high. Therefore
//   L >= max(0, up - (1 - x) high) - b x - A x^2 for x >= 0, and the mirror image for x <= 0. The
//   smallest value is at the corner. L <= A / 4 follows from the chords.
// In the complex plane |D(x + iy)| <= D(x) and |exp(-A (x + iy)^2)| = exp(-A x^2 + A y^2). Take an
// ellipse with the half axes a and h, and rho = a + h. Beyond |x| = 1 the slopes bound D again, so
// L <= M, the largest of the maxima of three parabolas. By theorem 8.2 of Trefethen, Approximation
// Theory and Approximation Practice,
//   |error of D| <= E min D,  E = 4 rho^(1 - P) / (rho - 1) exp(M - min L),
//   |error of N| <= E (range of v) min D,
// and the error of o is less than 2 E (range of v). P is the smallest number for which E <= 2^-26
// on one of 8 ellipses. The backward interpolates the same functions, the functions with a factor
// k_j, and the adjoint. The error of its weights is at most 2 E, that of its slopes at most
// 4 E (range of k) (range of v).
//
// When the sample is summed exactly. Rounding errors grow with the range of D. If that range
// exceeds kMostRange at the nodes, the sample is summed exactly. If L may span more than
// kMostSpread, this is known before any node is computed. Keys whose weight at the middle is below
// 2^-80 are given 2^-80, which is at most r 2^-40 of D.
//
// All exponents are to base 2.
//
// Tried and dropped, AVX2:
// - interpolating o itself: 96 nodes at r = 256, and no gain at r = 64;
// - nodes one by one instead of in pairs: 5.2 cycles for 8 exponentials, against 4.1 in pairs;
// - Clenshaw's recurrence: 4 operations per term for N and D, instead of 3;
// - polynomials of even and odd degree as two chains: 4 more registers per vector;
// - three vectors of queries at once: they no longer fit the registers. Two take 1.9 cycles per
//   vector and term, where 3 operations could take 1.5.

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
LR_INLINE int nodes_for(float up, float down, float low, float high) {
  const float A = (up + down) / 2, b = (up - down) / 2;
  const float right = high > 0 ? 1 - up / high : 0, left = low > 0 ? 1 - down / low : 0;
  const float least = smaller(0, smaller(-right * (b + A * right), left * (b - A * left)));
  if (!(A / 4 - least <= kMostSpread)) return 0;
  const Ellipses& all = ellipses();
  const f32 one = f32::set1(1), curved = f32::set1(A);
  f32 fewest = f32::set1(1e9f);
  for (int i = 0; i < kEllipses; i += f32::N) {
    const f32 a = f32::load(all.real + i), h = f32::load(all.imaginary + i), aa = a * a, hh = h * h;
    const f32 curve = curved * (aa + hh) / aa + f32::set1(1e-20f), half = one / (curve + curve);
    f32 highest = curved * f32::set1(0.25f) * aa / (aa + hh);
    const auto beyond = [&](float end, float slope, float b) __attribute__((always_inline)) {
      const f32 x = max(one, min(a, f32::set1(slope - b) * half));
      const f32 line = fma(x - one, f32::set1(slope), f32::set1(end)) - x * f32::set1(b);
      highest = max(highest, line - curve * x * x);
    };
    beyond(up, high, b);
    beyond(down, low, -b);
    const f32 bits = f32::set1(26.01f - least) + f32::load(all.lead + i) + fma(curved, hh, highest);
    fewest = min(fewest, fma(bits, f32::load(all.nodes + i), one));
  }
  const float wanted = lane_min(fewest);
  if (!(wanted <= (float)kMostNodes)) return 0;
  const int P = ((int)wanted + 2) / 2 * 2;
  return P < 8 ? 8 : P;
}

// Lays out a sample's keys and chooses its nodes. scratch: 3 * padded.
static __attribute__((noinline)) Sample sample_of(Range<float> queries, Range<float> keys,
                                                  const float* k, const float* v, int64_t r,
                                                  float scale, float* scratch) {
  constexpr int N = f32::N;
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
  f32 total = f32::set1(0), of_k = total, of_v = total;
  for (int64_t j = 0; j < s.padded; j += N) {
    const int64_t left = r - j;
    const f32 key = load_part(k + j, left) - f32::set1(top);
    f32 w = exp2_near(max(f32::set1(kLeastWeight), f32::set1(at_middle) * key));
    if (left < N) w = keep_first(w, left);
    w.store(s.weight + j);
    total = total + w;
    of_k = fma(w, key, of_k);
    of_v = fma(w, load_part(v + j, left), of_v);
  }
  s.total = sum(total);
  const float share = 1 / s.total, from_top = sum(of_k) * share;
  s.mean_v = sum(of_v) * share;
  if (!(from_top - from_top + (s.mean_v - s.mean_v) == 0)) return s;
  f32 at_high = f32::set1(0), at_low = at_high;
  for (int64_t j = 0; j < s.padded; j += N) {
    const int64_t left = r - j;
    const f32 key = load_part(k + j, left) - f32::set1(top) - f32::set1(from_top);
    const f32 value = load_part(v + j, left) - f32::set1(s.mean_v), w = f32::load(s.weight + j);
    (left < N ? keep_first(key, left) : key).store(s.key + j);
    (w * value).store(s.valued + j);
    f32 up, down;
    exp2_pair(key * f32::set1(s.S), up, down);
    at_high = fma(w, up, at_high);
    at_low = fma(w, down, at_low);
  }
  const float up = larger(0, __builtin_log2f(sum(at_high) * share));
  const float down = larger(0, __builtin_log2f(sum(at_low) * share));
  s.A = (up + down) / 2;
  s.b = (up - down) / 2;
  const float high = (keys.high - top) - from_top, low = (keys.low - top) - from_top;
  const int P = nodes_for(up, down, -low * s.S, high * s.S);
  if (2 * P <= r) s.P = P;
  return s;
}

// exp(-b x - A x^2) / D(0) at x and at -x.
LR_INLINE void node_factors(const Sample& s, f32 x, f32& plus, f32& minus) {
  const f32 share = f32::set1(1 / s.total), slope = f32::set1(s.b) * x,
            curve = f32::set1(s.A) * x * x;
  plus = exp2_near(f32::set1(0) - (slope + curve)) * share;
  minus = exp2_near(slope - curve) * share;
}
