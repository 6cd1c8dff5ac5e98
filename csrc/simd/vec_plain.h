// Vectors of plain C++, on any processor: the compiler's own, of 16 bytes. See vec.h.

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
