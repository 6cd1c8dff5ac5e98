// Few samples (see kSmallBatch in cross.cpp): rows as they lie, nothing turned.
//
// Every product is a dot product of a weight row with a sample, both contiguous: 4 rows by 4
// samples of accumulators, 8 loads for 16 FMAs, each weight read once from L2 or beyond. The 16
// accumulators are added up together, 30 shuffles and 15 additions.
//
// A sample's result does not depend on its neighbours nor on the number of threads.

// out[s][m] for R rows of a (from row m0, the last one repeated) and S samples, R * S = N.
template <typename V, int R, int S>
LR_INLINE void dot_block(const typename V::T* a, int64_t m0, int64_t rows, int64_t k,
                         const typename V::T* x, int64_t ldx, int64_t s0, int64_t samples,
                         typename V::T* out, int64_t ldo) {
  using T = typename V::T;
  constexpr int N = V::N;
  const T *row[R], *sample[S];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) row[i] = a + (m0 + i < rows ? m0 + i : rows - 1) * k;
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

// out[s * ldo + m] = sum_k a[m * k..] * x[s * ldx..]
template <typename V>
static __attribute__((noinline)) void dots(const typename V::T* a, int64_t rows, int64_t k,
                                           const typename V::T* x, int64_t ldx, int64_t samples,
                                           typename V::T* out, int64_t ldo) {
  constexpr int S = V::N >= 16 ? 4 : 2, R = V::N / S;
  if (samples == 1) {
    for (int64_t m = 0; m < rows; m += V::N)
      dot_block<V, V::N, 1>(a, m, rows, k, x, ldx, 0, 1, out, ldo);
    return;
  }
  for (int64_t m = 0; m < rows; m += R)
    for (int64_t s = 0; s < samples; s += S)
      dot_block<V, R, S>(a, m, rows, k, x, ldx, s, samples, out, ldo);
}

// y = x0 * (u p + bias) + x for a few samples; y may be x. h: samples x 4r, t: samples x d.
template <typename V>
LR_INLINE void small_layer(const Layer<typename V::T>& layer, const typename V::T* x0,
                           const typename V::T* x, typename V::T* y, int64_t samples,
                           typename V::T* h, typename V::T* t, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, r = layer.r, ldh = layer.projections * r;
  for (int s = 0; s < layer.projections; ++s)
    dots<V>(layer.in[s], r, d, x, d, samples, h + s * r, ldh);
  const T* p = h;
  if (layer.projections == 3) {
    T* result = h + samples * ldh;
    for (int64_t b = 0; b < samples; ++b)
      attend_sample<V>(layer, h + b * ldh, result + b * r, scratch);
    p = result;
  }
  dots<V>(layer.u, d, r, p, r, samples, t, d);
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t j = 0; j < d; j += V::N) {
      const int64_t left = d - j, at = b * d + j;
      V value = load_part<V>(t + at, left);
      if (layer.bias) value = value + load_part<V>(layer.bias + j, left);
      value = fma(value, load_part<V>(x0 + at, left), load_part<V>(x + at, left));
      store_part(value, y + at, left);
    }
}

// Elements of scratch: t and one state of width d, h and the attention's own.
static inline int64_t small_scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                                    int64_t samples) {
  const int64_t attention = projections == 3 ? attention_scratch(r, token_dim) : 0;
  return samples * (d + 4 * r) + attention + 64;
}
