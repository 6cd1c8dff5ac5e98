// Gradients of one layer, for one instruction set.
//
// A first pass over blocks of samples gives the gradients of x0 and x: 3 products of
// 2 * d * r flops beside those of what was not kept, all of them those of cross_rows.h. A second
// pass over blocks of columns, parallel over columns so that no partial sums are kept, gives those
// of the weights.
//
// Tried and dropped, 2048 samples, one thread of AVX2:
// - U^T dt and V^T dh with U and V as they lie: a 4 KB stride, one page and one L1 set per step;
// - weight gradients for 16 columns at a time: p and dh are read and packed d / 16 times;
// - tiles of turned samples as in cross_tiles.h: 66 % of the FMA peak at d = 512, r = 64;
// - sums where they end up, in rows of r or d: 16 rows of one block meet in few L1 sets;
// - fetching the next chunk into L2 while sums are taken: what loading gains, the sums lose.

// p's gradient (own rows, dp: (rows, r)) back through the attention into dh, rows of 3r.
template <typename V>
LR_INLINE void attention_backward_rows(const Layer<typename V::T>& layer, const typename V::T* own,
                                       const typename V::T* dp, int64_t rows, typename V::T* dh,
                                       typename V::T* scratch) {
  using T = typename V::T;
  const int64_t r = layer.r, t = layer.token_dim;
  for (int64_t b = 0; b < rows; ++b) {
    const T *h = own + b * 3 * r, *g = dp + b * r;
    T* to = dh + b * 3 * r;
    if (t == 1)
      attend_backward<V>(g, h, h + r, h + 2 * r, r, layer.scale, layer.inverse, to, to + r,
                         to + 2 * r, scratch);
    else
      attend_tokens_backward<V>(g, h, h + r, h + 2 * r, r / t, t, layer.scale, layer.inverse, to,
                                to + r, to + 2 * r, scratch);
    if (layer.skip)
      for (int64_t i = 0; i < r; ++i) to[2 * r + i] += g[i];
  }
}

// First pass, samples [begin, end) of `batch`: gradients of x0 and x; what went into u and dh for
// the second.
template <typename V>
LR_INLINE void backward_rows(const Layer<typename V::T>& layer, const Packed<typename V::T>& w,
                             const Backward<typename V::T>& io, int64_t begin, int64_t end,
                             int64_t batch, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r, rows = end - begin;
  const int64_t at = begin * d;
  const bool attends = layer.projections == 3;
  T *dt = scratch, *dp = dt + rows * d, *h = dp + rows * r, *work = h + rows * m;
  if (io.columns < m) {  // the columns that were not kept
    if (!attends) h = io.p + begin * r;
    for (int64_t b = 0; b < rows; ++b)
      for (int64_t i = 0; i < io.columns; ++i)
        h[b * m + i] = io.hidden[(begin + b) * io.columns + i];
    project_rows<V>(layer, w, io.x + at, rows, io.columns / kPanel<V> * kPanel<V>, h);
  }
  const T* own = io.columns == m ? io.hidden + begin * m : h;
  if (attends && io.low == io.p)
    for (int64_t b = 0; b < rows; ++b)
      attend_sample<V>(layer, own + b * m, io.p + (begin + b) * r, work);
  Ahead first = next_rows(io.grad, io.x0, (const T*)io.grad_x0, end, rows, batch, d);
  row_product<V>(io.low + begin * r, r, rows, w.u, r, d,
                 {io.grad_x0 + at, d, layer.bias, io.grad + at, nullptr}, first);

  for (int64_t i = 0; i < rows * d; i += V::N) {
    const int64_t left = rows * d - i;
    store_part(load_part<V>(io.grad + at + i, left) * load_part<V>(io.x0 + at + i, left), dt + i,
               left);
  }
  T* dh = io.dh + begin * m;
  Ahead nothing = {};
  row_product<V>(dt, d, rows, w.u_straight, d, r, {attends ? dp : dh, r, nullptr, nullptr, nullptr},
                 nothing);
  if (attends) attention_backward_rows<V>(layer, own, dp, rows, dh, work);
  Ahead second = next_rows(io.x, (const T*)io.grad_x, io.x, end, rows, batch, d);
  row_product<V>(dh, m, rows, w.in_straight, m, d,
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

template <typename V, bool times>
LR_INLINE void load_panels(const typename V::T* a, const typename V::T* b, int64_t ld, int64_t rows,
                           int64_t width, int64_t left, typename V::T* panels) {
  constexpr int64_t W = kRowVectors * V::N, line = 64 / sizeof(typename V::T);
  const int64_t whole = width / W * W, stride = panel_stride(rows, W);
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t row = k * ld, later = row + kRowsAhead * ld;
    if (k + kRowsAhead < left)
      for (int64_t j = 0; j < width; j += line) {
        __builtin_prefetch(a + later + j);
        if (times) __builtin_prefetch(b + later + j);
      }
    for (int64_t j = 0; j < whole; j += W) {
      typename V::T* to = panels + j / W * stride + k * W;
#pragma GCC unroll 4
      for (int n = 0; n < kRowVectors; ++n) {
        V t = V::load(a + row + j + n * V::N);
        if (times) t = t * V::load(b + row + j + n * V::N);
        t.store(to + n * V::N);
      }
    }
    if (whole < width)
      load_block<V>(a + row + whole, times ? b + row + whole : nullptr, ld, 1, width - whole, W,
                    panels + whole / W * stride + k * W);
  }
}

// Columns that one task of the second pass takes at a time: a chunk of dt and x and their sums
// lie in L2.
constexpr int64_t kSumColumns = 128;

// Elements of scratch for one block of columns; W: a panel's width.
static inline int64_t sum_scratch(int64_t r, int projections, int64_t W) {
  const int64_t gradients = (1 + projections) * padded_to(r, W);
  const int64_t panels = 3 * (padded_to(kSumColumns, W) / W);
  return panels * panel_stride(kSumRows, W) + padded_to(kSumColumns, W) * (gradients + 1);
}

// to (W x W) = a^T b over `rows` samples, added to what is there unless it is the first chunk.
template <typename V>
LR_INLINE void add_block(const typename V::T* a, const typename V::T* b, int64_t rows, bool first,
                         typename V::T* to) {
  constexpr int64_t W = kRowVectors * V::N, line = 64 / sizeof(typename V::T);
  for (int64_t i = 0; i < W * W; i += line) __builtin_prefetch(to + i, 1);
  const Product<typename V::T> one = {a, 1, W, rows, b};
  product<V>(one, W, W, kRowVectors, {to, W, nullptr, nullptr, first ? nullptr : to});
}

// Rows [0, rows) of a W x W block to out, `width` columns of each.
template <typename V>
LR_INLINE void store_block(const typename V::T* block, int64_t rows, int64_t width,
                           typename V::T* out, int64_t ld) {
  constexpr int64_t W = kRowVectors * V::N;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; j += V::N)
      store_part(V::load(block + i * W + j), out + i * ld + j, width - j);
}

// Columns [j0, j0 + width), width <= kSumColumns: their part of du, dbias and of every
// projection's gradient, summed over all samples in chunks of kSumRows, first to last. The sums
// lie in blocks of W x W.
template <typename V>
LR_INLINE void weight_columns(const Layer<typename V::T>& layer, const Backward<typename V::T>& io,
                              int64_t batch, int64_t j0, int64_t width,
                              const WeightGradient<typename V::T>& out, typename V::T* scratch) {
  using T = typename V::T;
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
    load_panels<V, true>(io.grad + at, io.x0 + at, d, rows, width, left, dt);
    load_panels<V, false>(io.x + at, io.x + at, d, rows, width, left, x);
    for (int64_t j = 0; j < columns; j += W)
      for (int64_t lane = 0; lane < W; lane += V::N) {
        V total = V::set1(0);
        for (int64_t k = 0; k < rows; ++k)
          total = total + V::load(dt + j / W * stride + k * W + lane);
        (V::load(db + j + lane) + total).store(db + j + lane);
      }
    for (int64_t i0 = 0; i0 < r; i0 += kSumColumns) {
      const int64_t high = r - i0 < kSumColumns ? r - i0 : kSumColumns;
      const T *p = io.low + b * r + i0, *dh = io.dh + b * m + i0;
      load_panels<V, false>(p, p, r, rows, high, left, panels);
      for (int64_t i = 0; i < high; i += W)
        for (int64_t j = 0; j < columns; j += W)
          add_block<V>(dt + j / W * stride, panels + i / W * stride, rows, b == 0,
                       du + (i0 + i) * columns + j * W);
      for (int64_t s = 0; s < n; ++s) {
        T* to = din + (s * padded + i0) * columns;
        load_panels<V, false>(dh + s * r, dh, m, rows, high, left, panels);
        for (int64_t i = 0; i < high; i += W)
          for (int64_t j = 0; j < columns; j += W)
            add_block<V>(panels + i / W * stride, x + j / W * stride, rows, b == 0,
                         to + i * columns + j * W);
      }
    }
  }
  memcpy(out.bias + j0, db, width * sizeof(T));
  for (int64_t j = 0; j < width; j += W)
    for (int64_t i = 0; i < r; i += W) {
      const int64_t high = r - i < W ? r - i : W, wide = width - j < W ? width - j : W;
      store_block<V>(du + i * columns + j * W, wide, high, out.u + (j0 + j) * r + i, r);
      for (int64_t s = 0; s < n; ++s)
        store_block<V>(din + (s * padded + i) * columns + j * W, high, wide,
                       out.in[s] + i * d + j0 + j, d);
    }
}
