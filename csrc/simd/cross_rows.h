// Layers on many samples, which stay rows; for one instruction set.
//
// Every product is (samples x k) (k x n): the samples are broadcast, 6 at a time, from where
// they lie, and the weights run along the lanes, packed once per call in panels
// panel[k][kRowVectors * N]. So nothing of a sample is ever turned, and results leave in whole
// lines. With AVX-512 12 samples and 2 vectors instead of 6 and 4 halve what comes from L2 for
// each product: 5 to 20 % of a layer and of a step on a Xeon with AMX, where h takes 150 and t 120
// Gflop/s of a thread's 215 and MKL 120 to 150 (d = 1024, r = 256, 2048 samples; 165 and 145 with
// 96 samples). Tried and dropped there: 256 of k at a time for all samples of a tile, so that a
// panel stays in L1 (no faster). Packing costs about 0.4 cycles per weight, turning the tiles of
// cross_tiles.h about 1.2 per element of the batch: kManySamples in cross.cpp. Both add up over k
// in order, in one accumulator: they are equal bit for bit.

// block[k][0..W) = a[k * ld + 0..width), times b where given, 0 beyond width.
template <typename V>
LR_INLINE void load_block(const typename V::T* a, const typename V::T* b, int64_t ld, int64_t rows,
                          int64_t width, int64_t W, typename V::T* block) {
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t j = 0; j < W; j += V::N) {
      const int64_t left = width - j > 0 ? width - j : 0;
      V t = load_part<V>(a + k * ld + j, left);
      if (b) t = t * load_part<V>(b + k * ld + j, left);
      t.store(block + k * W + j);
    }
}

// kRowSamples x kRowVectors accumulators fill the registers.
#if LIRANK_ISA == 512
constexpr int kRowSamples = 12, kRowVectors = 2;
#else
constexpr int kRowSamples = 6, kRowVectors = kTileVectors;
#endif
template <typename V>
constexpr int64_t kPanel = kRowVectors * V::N;

// Bytes of panels that 6 samples run through before the next 6: they stay in L2. Columns of
// such a block: their sums, 12 KB (float), stay in L1 until they are finished.
constexpr int64_t kPanelBytes = 128 << 10;
constexpr int64_t kBlockColumns = LIRANK_ISA == 512 ? 256 : 512;
// Sums of one sample lie so far apart: at 2^n bytes all rows would meet in one L1 set.
constexpr int64_t kSumStride = kBlockColumns + 16;

// out[m][j] = (sum + bias[j]) * scale[m][j] + add[m][j]; out, scale and add in rows of `ld`.
template <typename T>
struct RowEpilogue {
  T* out;
  int64_t ld;
  const T* bias;
  const T* scale;
  const T* add;
};

// What is read or written soon: `bytes` from each of three addresses, fetched into L2 a part at
// a time while the products run.
struct Ahead {
  const char* from[3];
  int64_t bytes, at;
};

LR_INLINE void fetch_ahead(Ahead& ahead, int64_t bytes) {
  const int64_t stop = ahead.at + bytes < ahead.bytes ? ahead.at + bytes : ahead.bytes;
  for (int64_t i = ahead.at; i < stop; i += 64) {
    __builtin_prefetch(ahead.from[0] + i, 0, 2);
    __builtin_prefetch(ahead.from[1] + i, 0, 2);
    __builtin_prefetch(ahead.from[2] + i, 0, 2);
  }
  ahead.at = stop;
}

template <typename V, int M, int NV>
LR_INLINE void row_micro(const Product<typename V::T>& one, typename V::T* out, int64_t ld,
                         int64_t left) {
  V acc[M][NV];
  accumulate<V, M, NV>(one, NV * V::N, 0, acc);
  if (left >= NV * V::N) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n].store(out + m * ld + n * V::N);
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) store_part(acc[m][n], out + m * ld + n * V::N, left - n * V::N);
}

// out = (sums + bias) * scale + add on one row of n elements. Pointers by value: kept in memory
// they would be read again after every store.
template <typename V, bool has_bias, bool has_scale, bool has_add>
LR_INLINE void finish_row(const typename V::T* sums, const typename V::T* bias,
                          const typename V::T* scale, const typename V::T* add, int64_t n,
                          typename V::T* out) {
  const auto one = [&](int64_t j, int64_t left) {
    V t = load_part<V>(sums + j, left);
    if (has_bias) t = t + load_part<V>(bias + j, left);
    if (has_scale && has_add)
      t = fma(t, load_part<V>(scale + j, left), load_part<V>(add + j, left));
    else if (has_scale)
      t = t * load_part<V>(scale + j, left);
    else if (has_add)
      t = t + load_part<V>(add + j, left);
    store_part(t, out + j, left);
  };
  int64_t j = 0;
#pragma GCC unroll 2
  for (; j + V::N <= n; j += V::N) one(j, V::N);
  if (j < n) one(j, n - j);
}

template <typename V>
LR_INLINE void finish_rows(const typename V::T* sums, int rows, int64_t m0, int64_t j0, int64_t n,
                           const RowEpilogue<typename V::T>& e) {
  using T = typename V::T;
  for (int m = 0; m < rows; ++m) {
    const T* from = sums + m * kSumStride;
    const int64_t at = (m0 + m) * e.ld + j0;
    const T *bias = e.bias + j0, *scale = e.scale + at, *add = e.add + at;
    T* out = e.out + at;
    if (e.scale && e.add)
      e.bias ? finish_row<V, true, true, true>(from, bias, scale, add, n, out)
             : finish_row<V, false, true, true>(from, bias, scale, add, n, out);
    else if (e.scale)
      e.bias ? finish_row<V, true, true, false>(from, bias, scale, add, n, out)
             : finish_row<V, false, true, false>(from, bias, scale, add, n, out);
    else
      finish_row<V, false, false, true>(from, bias, scale, add, n, out);
  }
}

// Panels [p0, p1) for samples [m0, m0 + M).
template <typename V, int M>
LR_INLINE void row_panels(const typename V::T* a, int64_t lda, int64_t m0,
                          const typename V::T* panels, int64_t k, int64_t columns, int64_t p0,
                          int64_t p1, const RowEpilogue<typename V::T>& e, Ahead& ahead,
                          int64_t fetch) {
  using T = typename V::T;
  constexpr int64_t W = kPanel<V>;
  const bool direct = !e.scale && !e.add;
  alignas(64) T sums[M * kSumStride];
  const int64_t ld = direct ? e.ld : kSumStride;
  T* out = direct ? e.out + m0 * ld + p0 * W : sums;
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t j0 = p * W, left = columns - j0;
    const Product<T> one = {a + m0 * lda, lda, 1, k, panels + j0 * k};
    T* to = out + (p - p0) * W;
    fetch_ahead(ahead, fetch);
    switch ((left + V::N - 1) / V::N) {
      case 1:
        row_micro<V, M, 1>(one, to, ld, left);
        break;
      default:
        row_micro<V, M, kRowVectors>(one, to, ld, left);
    }
  }
  const int64_t stop = p1 * W < columns ? p1 * W : columns;
  if (!direct) finish_rows<V>(sums, M, m0, p0 * W, stop - p0 * W, e);
}

// `columns` outputs of `rows` samples a[m * lda + ..k].
template <typename V>
static __attribute__((noinline)) void row_product(const typename V::T* a, int64_t lda, int64_t rows,
                                                  const typename V::T* panels, int64_t k,
                                                  int64_t columns,
                                                  const RowEpilogue<typename V::T>& e,
                                                  Ahead& ahead) {
  constexpr int64_t W = kPanel<V>;
  const int64_t count = (columns + W - 1) / W;
  const int64_t fit = kPanelBytes / (int64_t)(k * W * sizeof(typename V::T));
  const int64_t most = kBlockColumns / W, block = fit < 1 ? 1 : fit < most ? fit : most;
  // Fetching ends with this product's last panel.
  const int64_t fetch =
      ((ahead.bytes - ahead.at) / (count * ((rows + kRowSamples - 1) / kRowSamples)) + 64) / 64 *
      64;
  for (int64_t p = 0; p < count; p += block) {
    const int64_t q = p + block < count ? p + block : count;
    int64_t m = 0;
    for (; kRowSamples > 6 && m + kRowSamples <= rows; m += kRowSamples)
      row_panels<V, kRowSamples>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 6 <= rows; m += 6)
      row_panels<V, 6>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 4 <= rows; m += 4)
      row_panels<V, 4>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 2 <= rows; m += 2)
      row_panels<V, 2>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    if (m < rows) row_panels<V, 1>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
  }
}

// ---- packing -----------------------------------------------------------------------------

// a (rows, columns) into panels of its columns, rows [offset, offset + rows) of each panel's k;
// or, turned, a (columns, rows).
template <typename V>
LR_INLINE void pack_panel(const Packing<typename V::T>& one, int64_t j0) {
  constexpr int64_t W = kPanel<V>;
  const int64_t left = one.columns - j0 < W ? one.columns - j0 : W;
  const int64_t width = padded_to(left, V::N);
  typename V::T* panel = one.to + j0 * one.k + one.offset * width;
  if (one.turned)
    turn_in<V>(one.from + j0 * one.rows, one.rows, left, one.rows, panel, width,
               (int)(width / V::N));
  else
    load_block<V>(one.from + j0, nullptr, one.columns, one.rows, left, width, panel);
}

// The part-th of `parts` equal parts of the panels.
template <typename V>
LR_INLINE void pack_panels(const Packing<typename V::T>& one, int64_t part, int64_t parts) {
  const int64_t count = (one.columns + kPanel<V> - 1) / kPanel<V>;
  for (int64_t p = count * part / parts; p < count * (part + 1) / parts; ++p)
    pack_panel<V>(one, p * kPanel<V>);
}

// ---- one layer -----------------------------------------------------------------------------

static inline int64_t row_scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                                  int64_t samples) {
  const int64_t attention = projections == 3 ? attention_scratch(r, token_dim) : 0;
  return samples * (projections * r + 2 * r + d) + attention + 64;
}

// Projections of `rows` samples, those of the panels from column `first` on.
template <typename V>
LR_INLINE void project_rows(const Layer<typename V::T>& layer, const Packed<typename V::T>& w,
                            const typename V::T* x, int64_t rows, int64_t first, typename V::T* h) {
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r;
  Ahead nothing = {};
  for (int s = 0; s < layer.projections; ++s)
    row_product<V>(x, d, rows, w.in + s * w.in_size + first * d, d, r - first,
                   {h + s * r + first, m, nullptr, nullptr, nullptr}, nothing);
}

// The `rows` samples from `at` on, of three arrays of width d, are needed next.
template <typename T>
LR_INLINE Ahead next_rows(const T* a, const T* b, const T* c, int64_t at, int64_t rows,
                          int64_t batch, int64_t d) {
  const int64_t left = batch - at < rows ? batch - at : rows;
  return {{(const char*)(a + at * d), (const char*)(b + at * d), (const char*)(c + at * d)},
          left * d * (int64_t)sizeof(T),
          0};
}

// Samples [begin, end) of `batch` through one layer.
template <typename V>
LR_INLINE void forward_rows(const Layer<typename V::T>& layer, const Packed<typename V::T>& w,
                            const typename V::T* x0, const typename V::T* x, int64_t begin,
                            int64_t end, int64_t batch, typename V::T* y, Kept<typename V::T> kept,
                            typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r, rows = end - begin;
  T* h = kept.hidden && kept.columns == m ? kept.hidden + begin * m : scratch;
  project_rows<V>(layer, w, x + begin * d, rows, 0, h);
  if (kept.hidden && kept.columns < m)
    for (int64_t b = 0; b < rows; ++b)
      memcpy(kept.hidden + (begin + b) * kept.columns, h + b * m, kept.columns * sizeof(T));
  const T* p = h;
  if (layer.projections == 3) {
    T *own = scratch + rows * m, *result = kept.mixed ? kept.mixed + begin * r : own;
    for (int64_t b = 0; b < rows; ++b)
      attend_sample<V>(layer, h + b * m, result + b * r, own + rows * r);
    p = result;
  }
  Ahead ahead = next_rows(x0, x, (const T*)y, end, rows, batch, d);
  row_product<V>(p, r, rows, w.u, r, d,
                 {y + begin * d, d, layer.bias, x0 + begin * d, x + begin * d}, ahead);
}
