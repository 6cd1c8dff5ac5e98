// Cross layers on many samples that are not transposed, for one instruction set.
//
// Every product is (samples x k) (k x n). Samples are read in place and broadcast, 6 at a time. The
// weights run along the lanes and are packed once per call into panels
// panel[k][kRowVectors * N]. So samples are never transposed, and results are written in whole
// lines. With AVX-512 a block is 12 samples by 2 vectors instead of 6 by 4, which halves the reads
// from L2 and makes layers and training steps 5 to 20 % faster on a Xeon with AMX.
//
// Packing costs about 0.4 cycles per weight. Transposing the tiles of cross_tiles.h costs about 1.2
// cycles per element of the batch. kManySamples in cross.cpp chooses between the two. The products
// here and those of cross_tiles.h add over k in the same order, in one accumulator, so their
// results are equal bit for bit.
//
// Tried and dropped, on a Xeon with AMX: 256 of k at a time for all samples of a tile, so that a
// panel stays in L1 (no faster).

#include "simd/cross_lanes.h"
#include "simd/cross_tile_product.h"

// block[k][0..W) = a[k * ld + 0..width), times b where given, 0 beyond width.
template <typename T>
LR_INLINE void load_block(const T* a, const T* b, int64_t ld, int64_t rows, int64_t width,
                          int64_t W, T* block) {
  using V = Vec<T>;
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t j = 0; j < W; j += V::N) {
      const int64_t left = width - j > 0 ? width - j : 0;
      V t = load_part(a + k * ld + j, left);
      if (b) t = t * load_part(b + k * ld + j, left);
      t.store(block + k * W + j);
    }
}

// kRowSamples x kRowVectors accumulators fill the registers.
#if LIRANK_ISA == 512
constexpr int kRowSamples = 12, kRowVectors = 2;
#else
constexpr int kRowSamples = 6, kRowVectors = kTileVectors;
#endif
template <typename T>
constexpr int64_t kPanel = kRowVectors * Vec<T>::N;

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

template <typename T, int M, int NV>
LR_INLINE void row_micro(const Product<T>& one, T* out, int64_t ld, int64_t left) {
  using V = Vec<T>;
  V acc[M][NV];
  accumulate<T, M, NV>(one, NV * V::N, 0, acc);
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
template <typename T, bool has_bias, bool has_scale, bool has_add>
LR_INLINE void finish_row(const T* sums, const T* bias, const T* scale, const T* add, int64_t n,
                          T* out) {
  using V = Vec<T>;
  const auto one = [&](int64_t j, int64_t left) {
    V t = load_part(sums + j, left);
    if (has_bias) t = t + load_part(bias + j, left);
    if (has_scale && has_add)
      t = fma(t, load_part(scale + j, left), load_part(add + j, left));
    else if (has_scale)
      t = t * load_part(scale + j, left);
    else if (has_add)
      t = t + load_part(add + j, left);
    store_part(t, out + j, left);
  };
  int64_t j = 0;
#pragma GCC unroll 2
  for (; j + V::N <= n; j += V::N) one(j, V::N);
  if (j < n) one(j, n - j);
}

template <typename T>
LR_INLINE void finish_rows(const T* sums, int rows, int64_t m0, int64_t j0, int64_t n,
                           const RowEpilogue<T>& e) {
  for (int m = 0; m < rows; ++m) {
    const T* from = sums + m * kSumStride;
    const int64_t at = (m0 + m) * e.ld + j0;
    const T *bias = e.bias + j0, *scale = e.scale + at, *add = e.add + at;
    T* out = e.out + at;
    if (e.scale && e.add)
      e.bias ? finish_row<T, true, true, true>(from, bias, scale, add, n, out)
             : finish_row<T, false, true, true>(from, bias, scale, add, n, out);
    else if (e.scale)
      e.bias ? finish_row<T, true, true, false>(from, bias, scale, add, n, out)
             : finish_row<T, false, true, false>(from, bias, scale, add, n, out);
    else
      finish_row<T, false, false, true>(from, bias, scale, add, n, out);
  }
}

// Panels [p0, p1) for samples [m0, m0 + M).
template <typename T, int M>
LR_INLINE void row_panels(const T* a, int64_t lda, int64_t m0, const T* panels, int64_t k,
                          int64_t columns, int64_t p0, int64_t p1, const RowEpilogue<T>& e,
                          Ahead& ahead, int64_t fetch) {
  using V = Vec<T>;
  constexpr int64_t W = kPanel<T>;
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
        row_micro<T, M, 1>(one, to, ld, left);
        break;
      default:
        row_micro<T, M, kRowVectors>(one, to, ld, left);
    }
  }
  const int64_t stop = p1 * W < columns ? p1 * W : columns;
  if (!direct) finish_rows<T>(sums, M, m0, p0 * W, stop - p0 * W, e);
}

// `columns` outputs of `rows` samples a[m * lda + ..k].
template <typename T>
static __attribute__((noinline)) void row_product(const T* a, int64_t lda, int64_t rows,
                                                  const T* panels, int64_t k, int64_t columns,
                                                  const RowEpilogue<T>& e, Ahead& ahead) {
  constexpr int64_t W = kPanel<T>;
  const int64_t count = (columns + W - 1) / W;
  const int64_t fit = kPanelBytes / (int64_t)(k * W * sizeof(T));
  const int64_t most = kBlockColumns / W, block = fit < 1 ? 1 : fit < most ? fit : most;
  // Fetching ends with this product's last panel.
  const int64_t fetch =
      ((ahead.bytes - ahead.at) / (count * ((rows + kRowSamples - 1) / kRowSamples)) + 64) / 64 *
      64;
  for (int64_t p = 0; p < count; p += block) {
    const int64_t q = p + block < count ? p + block : count;
    int64_t m = 0;
    for (; kRowSamples > 6 && m + kRowSamples <= rows; m += kRowSamples)
      row_panels<T, kRowSamples>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 6 <= rows; m += 6)
      row_panels<T, 6>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 4 <= rows; m += 4)
      row_panels<T, 4>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    for (; m + 2 <= rows; m += 2)
      row_panels<T, 2>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
    if (m < rows) row_panels<T, 1>(a, lda, m, panels, k, columns, p, q, e, ahead, fetch);
  }
}

// ---- packing -----------------------------------------------------------------------------

// a (rows, columns) into panels of its columns, rows [offset, offset + rows) of each panel's k;
// or, transposed, a (columns, rows).
template <typename T>
LR_INLINE void pack_panel(const PackJob<T>& one, int64_t j0) {
  using V = Vec<T>;
  constexpr int64_t W = kPanel<T>;
  const int64_t left = one.columns - j0 < W ? one.columns - j0 : W;
  const int64_t width = padded_to(left, V::N);
  T* panel = one.to + j0 * one.k + one.offset * width;
  if (one.transposed)
    transpose_in<T>(one.from + j0 * one.rows, one.rows, left, one.rows, panel, width,
                    (int)(width / V::N));
  else
    load_block<T>(one.from + j0, nullptr, one.columns, one.rows, left, width, panel);
}

template <typename T>
int64_t CrossRows<T>::panel() {
  return kPanel<T>;
}

template <typename T>
int64_t CrossRows<T>::packed_size(int64_t columns, int64_t k) {
  return padded_to(columns, Vec<T>::N) * k;
}

// The part-th of `parts` equal parts of the panels.
template <typename T>
void CrossRows<T>::pack(const PackJob<T>& one, int64_t part, int64_t parts) {
  const int64_t count = (one.columns + kPanel<T> - 1) / kPanel<T>;
  for (int64_t p = count * part / parts; p < count * (part + 1) / parts; ++p)
    pack_panel<T>(one, p * kPanel<T>);
}

// ---- one layer -----------------------------------------------------------------------------

template <typename T>
int64_t CrossRows<T>::scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                              int64_t samples) {
  const int64_t attention = projections == 3 ? attention_scratch(r, token_dim) : 0;
  return samples * (projections * r + 2 * r + d) + attention + 64;
}

// Projections of `rows` samples, those of the panels from column `first` on.
template <typename T>
LR_INLINE void project_rows(const Layer<T>& layer, const WeightPanels<T>& w, const T* x,
                            int64_t rows, int64_t first, T* h) {
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r;
  Ahead nothing = {};
  for (int s = 0; s < layer.projections; ++s)
    row_product<T>(x, d, rows, w.in + s * w.in_size + first * d, d, r - first,
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
template <typename T>
void CrossRows<T>::layer(const Layer<T>& layer, const WeightPanels<T>& w, const T* x0, const T* x,
                         int64_t begin, int64_t end, int64_t batch, T* y, SavedActivations<T> kept,
                         T* scratch) {
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r, rows = end - begin;
  T* h = kept.hidden && kept.columns == m ? kept.hidden + begin * m : scratch;
  project_rows<T>(layer, w, x + begin * d, rows, 0, h);
  if (kept.hidden && kept.columns < m)
    for (int64_t b = 0; b < rows; ++b)
      memcpy(kept.hidden + (begin + b) * kept.columns, h + b * m, kept.columns * sizeof(T));
  const T* p = h;
  if (layer.projections == 3) {
    T *own = scratch + rows * m, *result = kept.mixed ? kept.mixed + begin * r : own;
    for (int64_t b = 0; b < rows; ++b)
      CrossAttention<T>::sample(layer, h + b * m, result + b * r, own + rows * r);
    p = result;
  }
  Ahead ahead = next_rows(x0, x, (const T*)y, end, rows, batch, d);
  row_product<T>(p, r, rows, w.u, r, d,
                 {y + begin * d, d, layer.bias, x0 + begin * d, x + begin * d}, ahead);
}

template struct CrossRows<float>;
template struct CrossRows<double>;

#include "simd/cross_backward.h"
