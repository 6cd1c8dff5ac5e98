// Gradients of one layer, for one instruction set.
//
// A first pass over blocks of samples computes the gradients of x0 and x. It takes 3 products of
// 2 * d * r flops, and recomputes the activations that were not saved. All products are those of
// cross_rows.h. A second pass over blocks of columns computes the gradients of the weights. It is
// parallel over columns, so no partial sums are stored.
//
// Tried and dropped, with 2048 samples on one AVX2 thread:
// - U^T dt and V^T dh with unpacked U and V: the stride is 4 KB, so each step touches another page
//   and the same L1 set;
// - weight gradients for 16 columns at a time: p and dh are then read and packed d / 16 times;
// - tiles of transposed samples as in cross_tiles.h: 66 % of the FMA peak at d = 512, r = 64;
// - sums in their final place, in rows of r or d: 16 rows of one block share few L1 sets;
// - prefetching the next chunk into L2 during the sums: the sums lose what the loads gain.

// First pass, samples [begin, end) of `batch`: gradients of x0 and x; what went into u and dh for
// the second.
template <typename T>
void CrossBackward<T>::rows(const Layer<T>& layer, const WeightPanels<T>& w, const Backward<T>& io,
                            int64_t begin, int64_t end, int64_t batch, T* scratch) {
  using V = Vec<T>;
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r, rows = end - begin;
  const int64_t at = begin * d;
  const bool attends = layer.projections == 3;
  T *dt = scratch, *dp = dt + rows * d, *h = dp + rows * r, *work = h + rows * m;
  if (io.columns < m) {  // the columns that were not kept
    if (!attends) h = io.p + begin * r;
    for (int64_t b = 0; b < rows; ++b)
      for (int64_t i = 0; i < io.columns; ++i)
        h[b * m + i] = io.hidden[(begin + b) * io.columns + i];
    project_rows<T>(layer, w, io.x + at, rows, io.columns / kPanel<T> * kPanel<T>, h);
  }
  const T* own = io.columns == m ? io.hidden + begin * m : h;
  if (attends && io.into_u == io.p)
    for (int64_t b = 0; b < rows; ++b)
      CrossAttention<T>::sample(layer, own + b * m, io.p + (begin + b) * r, work);
  Ahead first = next_rows(io.grad, io.x0, (const T*)io.grad_x0, end, rows, batch, d);
  row_product<T>(io.into_u + begin * r, r, rows, w.u, r, d,
                 {io.grad_x0 + at, d, layer.bias, io.grad + at, nullptr}, first);

  for (int64_t i = 0; i < rows * d; i += V::N) {
    const int64_t left = rows * d - i;
    store_part(load_part(io.grad + at + i, left) * load_part(io.x0 + at + i, left), dt + i, left);
  }
  T* dh = io.dh + begin * m;
  Ahead nothing = {};
  row_product<T>(dt, d, rows, w.u_straight, d, r, {attends ? dp : dh, r, nullptr, nullptr, nullptr},
                 nothing);
  if (attends)
    for (int64_t b = 0; b < rows; ++b)
      CrossAttention<T>::sample_backward(layer, own + b * m, dp + b * r, dh + b * m, work);
  Ahead second = next_rows(io.x, (const T*)io.grad_x, io.x, end, rows, batch, d);
  row_product<T>(dh, m, rows, w.in_straight, m, d,
                 {io.grad_x + at, d, nullptr, nullptr, io.grad + at}, second);
}

// ---- second pass ---------------------------------------------------------------------------

// Samples per chunk: a panel of 128 rows is 8 KB (AVX2).
constexpr int64_t kSumRows = 128;

// Elements from one panel of W columns to the next: a line more than it holds, or all panels'
// k-th rows would be one L1 set.
static inline int64_t panel_stride(int64_t rows, int64_t W) { return (rows + 1) * W; }

// The same for many columns, W at a time: panels[j / W][k][0..W). Row by row, so that a page of
// the inputs is met once, and some rows ahead, which the few lines of a row are too short for:
// `left` rows follow.
constexpr int64_t kRowsAhead = 8;

template <typename T, bool times>
LR_INLINE void load_panels(const T* a, const T* b, int64_t ld, int64_t rows, int64_t width,
                           int64_t left, T* panels) {
  using V = Vec<T>;
  constexpr int64_t W = kRowVectors * V::N, line = 64 / sizeof(T);
  const int64_t whole = width / W * W, stride = panel_stride(rows, W);
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t row = k * ld, later = row + kRowsAhead * ld;
    if (k + kRowsAhead < left)
      for (int64_t j = 0; j < width; j += line) {
        __builtin_prefetch(a + later + j);
        if (times) __builtin_prefetch(b + later + j);
      }
    for (int64_t j = 0; j < whole; j += W) {
      T* to = panels + j / W * stride + k * W;
#pragma GCC unroll 4
      for (int n = 0; n < kRowVectors; ++n) {
        V t = V::load(a + row + j + n * V::N);
        if (times) t = t * V::load(b + row + j + n * V::N);
        t.store(to + n * V::N);
      }
    }
    if (whole < width)
      load_block<T>(a + row + whole, times ? b + row + whole : nullptr, ld, 1, width - whole, W,
                    panels + whole / W * stride + k * W);
  }
}

// Columns that one task of the second pass takes at a time: a chunk of dt and x and their sums
// lie in L2.
constexpr int64_t kSumColumns = 128;

template <typename T>
int64_t CrossBackward<T>::columns() {
  return kSumColumns;
}

template <typename T>
int64_t CrossBackward<T>::weights_scratch(int64_t r, int projections) {
  constexpr int64_t W = kPanel<T>;
  const int64_t gradients = (1 + projections) * padded_to(r, W);
  const int64_t panels = 3 * (padded_to(kSumColumns, W) / W);
  return panels * panel_stride(kSumRows, W) + padded_to(kSumColumns, W) * (gradients + 1);
}

// to (W x W) = a^T b over `rows` samples, added to what is there unless it is the first chunk.
template <typename T>
LR_INLINE void add_block(const T* a, const T* b, int64_t rows, bool first, T* to) {
  using V = Vec<T>;
  constexpr int64_t W = kRowVectors * V::N, line = 64 / sizeof(T);
  for (int64_t i = 0; i < W * W; i += line) __builtin_prefetch(to + i, 1);
  const Product<T> one = {a, 1, W, rows, b};
  product<T>(one, W, W, kRowVectors, {to, W, nullptr, nullptr, first ? nullptr : to});
}

// Rows [0, rows) of a W x W block to out, `width` columns of each.
template <typename T>
LR_INLINE void store_block(const T* block, int64_t rows, int64_t width, T* out, int64_t ld) {
  using V = Vec<T>;
  constexpr int64_t W = kRowVectors * V::N;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; j += V::N)
      store_part(V::load(block + i * W + j), out + i * ld + j, width - j);
}

// Columns [j0, j0 + width), width <= kSumColumns: their part of du, dbias and of every
// projection's gradient, summed over all samples in chunks of kSumRows, first to last. The sums
// lie in blocks of W x W.
template <typename T>
void CrossBackward<T>::weights(const Layer<T>& layer, const Backward<T>& io, int64_t batch,
                               int64_t j0, int64_t width, const WeightGradient<T>& out,
                               T* scratch) {
  using V = Vec<T>;
  constexpr int64_t W = kRowVectors * V::N;
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r, n = layer.projections;
  const int64_t padded = padded_to(r, W), columns = padded_to(width, W), count = columns / W;
  const int64_t most = panel_stride(kSumRows, W);
  T *dt = scratch, *x = dt + count * most, *panels = x + count * most;
  T *du = panels + padded_to(kSumColumns, W) / W * most, *din = du + columns * padded,
    *db = din + n * columns * padded;
  for (int64_t j = 0; j < columns; ++j) db[j] = 0;
  if (batch == 0)  // no chunk writes them
    for (T* sum = du; sum < db; ++sum) *sum = 0;
  for (int64_t b = 0; b < batch; b += kSumRows) {
    const int64_t rows = batch - b < kSumRows ? batch - b : kSumRows, at = b * d + j0;
    const int64_t stride = panel_stride(rows, W), left = batch - b;
    load_panels<T, true>(io.grad + at, io.x0 + at, d, rows, width, left, dt);
    load_panels<T, false>(io.x + at, io.x + at, d, rows, width, left, x);
    for (int64_t j = 0; j < columns; j += W)
      for (int64_t lane = 0; lane < W; lane += V::N) {
        V total = V::set1(0);
        for (int64_t k = 0; k < rows; ++k)
          total = total + V::load(dt + j / W * stride + k * W + lane);
        (V::load(db + j + lane) + total).store(db + j + lane);
      }
    for (int64_t i0 = 0; i0 < r; i0 += kSumColumns) {
      const int64_t high = r - i0 < kSumColumns ? r - i0 : kSumColumns;
      const T *p = io.into_u + b * r + i0, *dh = io.dh + b * m + i0;
      load_panels<T, false>(p, p, r, rows, high, left, panels);
      for (int64_t i = 0; i < high; i += W)
        for (int64_t j = 0; j < columns; j += W)
          add_block<T>(dt + j / W * stride, panels + i / W * stride, rows, b == 0,
                       du + (i0 + i) * columns + j * W);
      for (int64_t s = 0; s < n; ++s) {
        T* to = din + (s * padded + i0) * columns;
        load_panels<T, false>(dh + s * r, dh, m, rows, high, left, panels);
        for (int64_t i = 0; i < high; i += W)
          for (int64_t j = 0; j < columns; j += W)
            add_block<T>(panels + i / W * stride, x + j / W * stride, rows, b == 0,
                         to + i * columns + j * W);
      }
    }
  }
  memcpy(out.bias + j0, db, width * sizeof(T));
  for (int64_t j = 0; j < width; j += W)
    for (int64_t i = 0; i < r; i += W) {
      const int64_t high = r - i < W ? r - i : W, wide = width - j < W ? width - j : W;
      store_block<T>(du + i * columns + j * W, wide, high, out.u + (j0 + j) * r + i, r);
      for (int64_t s = 0; s < n; ++s)
        store_block<T>(din + (s * padded + i) * columns + j * W, high, wide,
                       out.in[s] + i * d + j0 + j, d);
    }
}

template struct CrossBackward<float>;
template struct CrossBackward<double>;
