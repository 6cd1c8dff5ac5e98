// Rows of hashed tables moved by the gradients of runs, for one instruction set.

#include "simd/hashed_embedding_rows.h"
#include "simd/hashed_embedding_runs.h"

using ::lirank::hashed::RowUpdate;

// Entries between one whose row is asked for and the one that is summed.
constexpr int64_t kEntriesAhead = 16;

LR_INLINE void store_part(f32 x, float* p, int64_t n) { store_lanes(x, p, n); }
LR_INLINE void store_part(f64 x, double* p, int64_t n) { store_lanes(x, p, n); }
template <typename Half>
LR_INLINE void store_part(f32 x, Half* p, int64_t n) {
  if (n >= f32::N) return store_element(x, p);
  Half lane[f32::N];
  store_element(x, lane);
  memcpy(p, lane, (size_t)n * sizeof(Half));
}

// The gradient of columns from c on, with the penalty's share.
template <typename T, typename E>
LR_INLINE Vec<T> penalized(const T* gradient, const E* w, int64_t left, T l2) {
  const Vec<T> g = load_lanes<Vec<T>>(gradient, left);
  if (l2 == 0) return g;
  return fma(Vec<T>::set1(l2), left < Vec<T>::N ? load_element(w, left) : load_element(w), g);
}

// A row whose gradient is zeros stays where it is, the penalty included.
template <typename T, typename E>
static void move_elements(const RowUpdate& u, int64_t row, const T* gradient) {
  using V = Vec<T>;
  const int64_t dim = u.runs.dim;
  int64_t zeros = 0;
  while (zeros < dim && gradient[zeros] == 0) ++zeros;
  if (zeros == dim) return;
  E* w = (E*)u.table + row * dim;
  const T l2 = (T)u.l2;
  T rate = (T)u.lr;
  if (u.sums) {
    V squares = V::set1(0);
    for (int64_t c = 0; c < dim; c += V::N) {
      const V g = penalized<T>(gradient + c, w + c, dim - c, l2);
      squares = fma(g, g, squares);
    }
    T& total = ((T*)u.sums)[row];
    total += sum(squares) / (T)dim;
    rate /= (T)__builtin_sqrt((double)total) + (T)u.eps;
  }
  for (int64_t c = 0; c < dim; c += V::N) {
    const int64_t left = dim - c;
    const V g = penalized<T>(gradient + c, w + c, left, l2);
    const V old = left < V::N ? load_element(w + c, left) : load_element(w + c);
    store_part(old - V::set1(rate) * g, w + c, left);
  }
}

void move_row(const RowUpdate& u, int64_t row, const void* gradient) {
  switch (u.dtype) {
    case DType::float64:
      return move_elements<double, double>(u, row, (const double*)gradient);
    case DType::float16:
      return move_elements<float, half_bits>(u, row, (const float*)gradient);
    case DType::bfloat16:
      return move_elements<float, bfloat_bits>(u, row, (const float*)gradient);
    default:
      return move_elements<float, float>(u, row, (const float*)gradient);
  }
}

template <typename T, typename E>
static bool move_range(const RowUpdate& u, int64_t from, int64_t to, T* head, T* tail) {
  const GradientRuns& r = u.runs;
  const auto row_at = [&](int64_t i) { return (int64_t)(r.entries[i] >> 32); };
  const int64_t bytes = r.dim * (int64_t)sizeof(E);
  bool carried = false;
  for (int64_t begin = from, end; begin < to; begin = end) {
    const int64_t row = row_at(begin);
    for (end = begin + 1; end < to && row_at(end) == row;) ++end;
    if (begin + kEntriesAhead < to) {
      const int64_t next = row_at(begin + kEntriesAhead);
      prefetch_bytes((const uint8_t*)u.table + next * bytes, bytes);
      if (u.sums) __builtin_prefetch((const T*)u.sums + next);
    }
    const bool continues = begin == from && begin > 0 && row_at(begin - 1) == row;
    const bool goes_on = end == to && to < u.count && row_at(to) == row;
    T* out = continues ? head : tail;
    all_columns<Vec<T>::N>(r.dim,
                           [&](const Span& span) { sum_columns<T>(r, begin, end, span, out); });
    carried = carried || continues;
    if (!continues && !goes_on) move_elements<T, E>(u, row, out);
  }
  return carried;
}

bool move_runs(const RowUpdate& u, int64_t from, int64_t to, void* head, void* tail) {
  switch (u.dtype) {
    case DType::float64:
      return move_range<double, double>(u, from, to, (double*)head, (double*)tail);
    case DType::float16:
      return move_range<float, half_bits>(u, from, to, (float*)head, (float*)tail);
    case DType::bfloat16:
      return move_range<float, bfloat_bits>(u, from, to, (float*)head, (float*)tail);
    default:
      return move_range<float, float>(u, from, to, (float*)head, (float*)tail);
  }
}
