// Sums of the gradients of sorted entries, for one instruction set. simd/hashed_embedding_rows.h
// comes before it.

using ::lirank::hashed::GradientRuns;

// out = sum of weight * grad[bag] over entries [from, to), columns in registers.
template <typename T, int blocks, bool narrow>
LR_INLINE void sum_entries(const GradientRuns& r, int64_t from, int64_t to, const Span& span,
                           T* out) {
  using V = Vec<T>;
  const int64_t first = span.first, last = span.last, lanes = narrow ? span.lanes : V::N;
  const auto at = [&](int b) { return b == blocks - 1 ? last : b * V::N; };
  V total[blocks];
  for (int b = 0; b < blocks; ++b) total[b] = V::set1(0);
  for (int64_t e = from; e < to; ++e) {
    const uint32_t position = (uint32_t)r.entries[e];
    const T* g = (const T*)r.grad + (int64_t)r.bag_of[position] * r.dim + first;
    const V w = V::set1(r.weights ? ((const T*)r.weights)[position] : (T)1);
    for (int b = 0; b < blocks; ++b) total[b] = fma(load_lanes<V>(g + at(b), lanes), w, total[b]);
  }
  for (int b = 0; b < blocks; ++b) store_lanes(total[b], out + first + at(b), lanes);
}

template <typename T>
static void sum_columns(const GradientRuns& r, int64_t from, int64_t to, const Span& span, T* out) {
  if (span.lanes < Vec<T>::N) return sum_entries<T, 1, true>(r, from, to, span, out);
  with_width(span.blocks, [&](auto width) __attribute__((always_inline)) {
    sum_entries<T, decltype(width)::value, false>(r, from, to, span, out);
  });
}
