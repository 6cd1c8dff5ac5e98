// Products of few samples with weight rows, as dot products, for one instruction set; see
// cross_few_samples.h.

// out[s][m] for R rows of a (from row m0, the last one repeated) and S samples, R * S = N.
template <typename T, int R, int S>
LR_INLINE void dot_block(const T* a, int64_t lda, int64_t m0, int64_t rows, int64_t k, const T* x,
                         int64_t ldx, int64_t s0, int64_t samples, T* out, int64_t ldo) {
  using V = Vec<T>;
  constexpr int N = V::N;
  const T *row[R], *sample[S];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) row[i] = a + (m0 + i < rows ? m0 + i : rows - 1) * lda;
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) sample[s] = x + (s0 + s < samples ? s0 + s : samples - 1) * ldx;
  V acc[R * S];
#pragma GCC unroll 16
  for (int i = 0; i < R * S; ++i) acc[i] = V::set1(0);
  int64_t j = 0;
  for (; j + N <= k; j += N) {
    V value[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) value[s] = V::load(sample[s] + j);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V w = V::load(row[i] + j);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) acc[s * R + i] = fma(w, value[s], acc[s * R + i]);
    }
  }
  if (j < k) {
    V value[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) value[s] = V::load(sample[s] + j, k - j);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V w = V::load(row[i] + j, k - j);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) acc[s * R + i] = fma(w, value[s], acc[s * R + i]);
    }
  }
  if (S == 1) return store_part(sums(acc), out + s0 * ldo + m0, rows - m0);
  T lane[N];
  sums(acc).store(lane);
  for (int s = 0; s < S && s0 + s < samples; ++s) {
    T* to = out + (s0 + s) * ldo + m0;
    if (m0 + R <= rows)
      memcpy(to, lane + s * R, R * sizeof(T));
    else
      for (int i = 0; m0 + i < rows; ++i) to[i] = lane[s * R + i];
  }
}

// out[s * ldo + m] = sum_k a[m * lda..] * x[s * ldx..]
template <typename T>
static __attribute__((noinline)) void dots(const T* a, int64_t lda, int64_t rows, int64_t k,
                                           const T* x, int64_t ldx, int64_t samples, T* out,
                                           int64_t ldo) {
  using V = Vec<T>;
  constexpr int S = V::N >= 16 ? 4 : 2, R = V::N / S;
  if (samples == 1) {
    for (int64_t m = 0; m < rows; m += V::N)
      dot_block<T, V::N, 1>(a, lda, m, rows, k, x, ldx, 0, 1, out, ldo);
    return;
  }
  for (int64_t m = 0; m < rows; m += R)
    for (int64_t s = 0; s < samples; s += S)
      dot_block<T, R, S>(a, lda, m, rows, k, x, ldx, s, samples, out, ldo);
}

// low = (low + high) * factor on n elements.
template <typename T>
LR_INLINE void merge_states(T* low, const T* high, int64_t n, T factor) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += V::N) {
    const V both = load_part(low + i, n - i) + load_part(high + i, n - i);
    store_part(both * V::set1(factor), low + i, n - i);
  }
}
