// Cross layers on tiles of samples, for one instruction set. The products are described in
// cross_gemm.h, the attention in cross_attention_kernels.h.
//
// Forward: a tile's x0 and x are turned once, stay in L2 through all layers, and are turned
// back once. Backward: one pass over tiles recomputes h and gives the gradients of x0 and x
// (3 products of 2 * d * r flops beside h's); a second pass over blocks of
// columns, parallel over columns so that no partial sums are kept, gives those of the weights.
//
// Tried and dropped in the backward, 2048 x 1024, r = 256, one thread of AVX2 (336 -> 253 ms):
// - U^T dt and V^T dh with U and V as they lie: a 4 KB stride, one page and one L1 set per step;
// - weight gradients for 16 columns at a time: p and dh are read and packed d / 16 times.

#include "cross_lanes.h"
#include "cross_gemm.h"
#include "cross_attention_kernels.h"
#include "cross_chebyshev.h"

template <typename V>
LR_INLINE void attend_sample(const Layer<typename V::T>& layer, const typename V::T* h,
                             typename V::T* out, typename V::T* scratch) {
  const int64_t r = layer.r, t = layer.token_dim;
  if (t == 1)
    attend<V>(h, h + r, h + 2 * r, r, layer.scale, layer.inverse, out);
  else
    attend_tokens<V>(h, h + r, h + 2 * r, r / t, t, layer.scale, out, scratch);
  if (layer.skip)
    for (int64_t i = 0; i < r; ++i) out[i] += h[2 * r + i];
}

#include "cross_small.h"

// own: rows of q, k, v, (samples, 3r) -> p (r x W); result: the same as rows, (samples, r).
template <typename V>
LR_INLINE void attend_tile(const Layer<typename V::T>& layer, const typename V::T* own,
                           typename V::T* result, typename V::T* p, int64_t W, int64_t rows,
                           int vectors, typename V::T* scratch) {
  const int64_t r = layer.r;
  for (int64_t b = 0; b < rows; ++b)
    attend_sample<V>(layer, own + b * 3 * r, result + b * r, scratch);
  turn_in<V>(result, r, rows, r, p, W, vectors);
}

// Projections of a tile: h (projections * r x W).
template <typename V>
LR_INLINE void project(const Layer<typename V::T>& layer, const typename V::T* x, typename V::T* h,
                       int64_t W, int vectors) {
  using T = typename V::T;
  for (int s = 0; s < layer.projections; ++s) {
    const Product<T> one = {layer.in[s], layer.d, 1, layer.d, x};
    product<V>(&one, 1, layer.r, W, vectors, {h + s * layer.r * W, W, nullptr, nullptr, nullptr});
  }
}

// y = x0 * (u p + bias) + x on a tile; y may be x, not x0. h: 3r x W, p: r x W; kept: what
// training keeps of these samples, or null pointers.
template <typename V>
LR_INLINE void layer_tile(const Layer<typename V::T>& layer, const typename V::T* x0,
                          const typename V::T* x, typename V::T* y, int64_t W, int64_t rows,
                          int vectors, typename V::T* h, typename V::T* p, typename V::T* work,
                          Kept<typename V::T> kept) {
  using T = typename V::T;
  const int64_t r = layer.r;
  project<V>(layer, x, h, W, vectors);
  const T* hidden = h;
  if (layer.projections == 3) {
    T *own = kept.hidden ? kept.hidden : work, *spare = work + W * 3 * r;
    T* result = kept.mixed ? kept.mixed : spare;
    turn_out<V>(h, W, rows, 3 * r, own, 3 * r);
    attend_tile<V>(layer, own, result, p, W, rows, vectors, spare + W * r);
    hidden = p;
  } else if (kept.hidden) {
    turn_out<V>(h, W, rows, r, kept.hidden, r);
  }
  const Product<T> back = {layer.u, r, 1, r, hidden};
  product<V>(&back, 1, layer.d, W, vectors, {y, W, layer.bias, x0, x});
}

// Elements of scratch for a tile of W lanes: 3 of width d, and the hidden ones.
static inline int64_t tile_scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                                   int64_t W) {
  if (projections == 1) return W * (3 * d + 2 * r);
  return W * (3 * d + 3 * r + r + 4 * r + 4 * r) + 2 * attention_scratch(r, token_dim);
}

// Samples [begin, end), at most W of them, through one layer.
template <typename V>
LR_INLINE void forward_range(const Layer<typename V::T>& layer, const typename V::T* x0,
                             const typename V::T* x, int64_t begin, int64_t end, int vectors,
                             typename V::T* y, Kept<typename V::T> kept, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, r = layer.r, rows = end - begin, W = vectors * V::N;
  T *tile0 = scratch, *tile = tile0 + d * W, *out = tile + d * W, *h = out + d * W;
  T *p = h + layer.projections * r * W, *work = p + r * W;
  turn_in<V>(x0 + begin * d, d, rows, d, tile0, W, vectors);
  const T* from = tile0;
  if (x != x0) {
    turn_in<V>(x + begin * d, d, rows, d, tile, W, vectors);
    from = tile;
  }
  if (kept.hidden) kept.hidden += begin * layer.projections * r;
  if (kept.mixed) kept.mixed += begin * r;
  layer_tile<V>(layer, tile0, from, out, W, rows, vectors, h, p, work, kept);
  turn_out<V>(out, W, rows, d, y + begin * d, d);
}

// A few samples through one layer. scratch: small_scratch.
template <typename V>
LR_INLINE void small_range(const Layer<typename V::T>& layer, const typename V::T* x0,
                           const typename V::T* x, int64_t begin, int64_t end, typename V::T* y,
                           Kept<typename V::T> kept, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, samples = end - begin, at = begin * d;
  const int64_t m = layer.projections * layer.r;
  T *t = scratch, *h = t + samples * d;
  small_layer<V>(layer, x0 + at, x + at, y + at, samples, h, t, h + samples * 4 * layer.r);
  if (kept.hidden) memcpy(kept.hidden + begin * m, h, samples * m * sizeof(T));
  if (kept.mixed)
    memcpy(kept.mixed + begin * layer.r, h + samples * m, samples * layer.r * sizeof(T));
}

// low = (low + high) * factor on n elements.
template <typename V>
LR_INLINE void merge_states(typename V::T* low, const typename V::T* high, int64_t n,
                            typename V::T factor) {
  for (int64_t i = 0; i < n; i += V::N) {
    const V both = load_part<V>(low + i, n - i) + load_part<V>(high + i, n - i);
    store_part(both * V::set1(factor), low + i, n - i);
  }
}

// Both stacks on samples [begin, end). scratch: tile_scratch of the widest layer.
template <typename V>
LR_INLINE void net_range(const Net<typename V::T>& net, const typename V::T* x, int64_t begin,
                         int64_t end, int vectors, typename V::T* y, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = net.d, rows = end - begin, W = vectors * V::N;
  T *tile0 = scratch, *state[2] = {tile0 + d * W, tile0 + 2 * d * W}, *h = tile0 + 3 * d * W;
  turn_in<V>(x + begin * d, d, rows, d, tile0, W, vectors);
  for (int stack = 0; stack < 2; ++stack) {
    const Layer<T>* layers = stack ? net.high : net.low;
    const int64_t count = stack ? net.highs : net.lows;
    for (int64_t i = 0; i < count; ++i) {
      T *p = h + layers[i].projections * layers[i].r * W, *work = p + layers[i].r * W;
      layer_tile<V>(layers[i], tile0, i ? state[stack] : tile0, state[stack], W, rows, vectors, h,
                    p, work, {nullptr, nullptr});
    }
  }
  if (net.merge == 2) {
    turn_out<V>(state[0], W, rows, d, y + begin * 2 * d, 2 * d);
    turn_out<V>(state[1], W, rows, d, y + begin * 2 * d + d, 2 * d);
    return;
  }
  merge_states<V>(state[0], state[1], d * W, net.merge ? T(0.5) : T(1));
  turn_out<V>(state[0], W, rows, d, y + begin * d, d);
}

// The same for a few samples. scratch: two states and small_scratch of the widest layer.
template <typename V>
LR_INLINE void small_net_range(const Net<typename V::T>& net, const typename V::T* x, int64_t begin,
                               int64_t end, typename V::T* y, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = net.d, samples = end - begin, size = samples * d;
  const T* x0 = x + begin * d;
  T *state[2] = {scratch, scratch + size}, *t = scratch + 2 * size, *h = t + size;
  for (int stack = 0; stack < 2; ++stack) {
    const Layer<T>* layers = stack ? net.high : net.low;
    const int64_t count = stack ? net.highs : net.lows;
    for (int64_t i = 0; i < count; ++i)
      small_layer<V>(layers[i], x0, i ? state[stack] : x0, state[stack], samples, h, t,
                     h + samples * 4 * layers[i].r);
  }
  if (net.merge == 2) {
    for (int64_t b = 0; b < samples; ++b)
      for (int stack = 0; stack < 2; ++stack)
        memcpy(y + (2 * (begin + b) + stack) * d, state[stack] + b * d, d * sizeof(T));
    return;
  }
  merge_states<V>(state[0], state[1], size, net.merge ? T(0.5) : T(1));
  memcpy(y + begin * d, state[0], size * sizeof(T));
}

static inline int64_t padded_to(int64_t n, int64_t W) { return (n + W - 1) / W * W; }

// Samples per chunk of the second backward pass: a panel of 128 rows is 8 KB (AVX2).
constexpr int64_t kSumRows = 128;

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

// First pass, samples [begin, end): gradients of x0 and x; p and dh for the second.
template <typename V>
LR_INLINE void backward_range(const Layer<typename V::T>& layer, const Backward<typename V::T>& io,
                              int64_t begin, int64_t end, int vectors, typename V::T* scratch) {
  using T = typename V::T;
  const int64_t d = layer.d, r = layer.r, rows = end - begin, W = vectors * V::N;
  const int n = layer.projections;
  T *g = scratch, *dt = g + d * W, *x = dt + d * W, *h = x + d * W;
  T *p = h + n * r * W, *work = p + r * W, *dp = work + W * 3 * r;
  const T *tile = h, *own = work;
  if (io.hidden) {
    own = io.hidden + begin * n * r;
    if (n == 1) turn_in<V>(own, r, rows, r, h, W, vectors);
  } else {
    turn_in<V>(io.x + begin * d, d, rows, d, x, W, vectors);
    project<V>(layer, x, h, W, vectors);
    turn_out<V>(h, W, rows, n * r, n == 3 ? work : io.p + begin * r, n * r);
  }
  if (n == 3) {
    if (io.mixed)
      turn_in<V>(io.mixed + begin * r, r, rows, r, p, W, vectors);
    else
      attend_tile<V>(layer, own, io.p + begin * r, p, W, rows, vectors, dp);
    tile = p;
  }
  turn_in<V>(io.grad + begin * d, d, rows, d, g, W, vectors);
  const Product<T> back = {layer.u, r, 1, r, tile};  // x is no longer needed
  product<V>(&back, 1, d, W, vectors, {x, W, layer.bias, g, nullptr});
  turn_out<V>(x, W, rows, d, io.grad_x0 + begin * d, d);

  turn_in<V>(io.x0 + begin * d, d, rows, d, dt, W, vectors);
  for (int64_t i = 0; i < d * W; i += V::N) (V::load(dt + i) * V::load(g + i)).store(dt + i);
  const Product<T> down = {io.turned_u, padded_to(d, V::N), 1, d, dt};
  product<V>(&down, 1, r, W, vectors, {p, W, nullptr, nullptr, nullptr});
  T* dh = io.dh + begin * n * r;
  tile = p;
  if (n == 3) {
    turn_out<V>(p, W, rows, r, dp, r);
    attention_backward_rows<V>(layer, own, dp, rows, dh, dp + W * r);
    turn_in<V>(dh, 3 * r, rows, 3 * r, h, W, vectors);
    tile = h;
  } else {
    turn_out<V>(p, W, rows, r, dh, r);
  }
  Product<T> up[3];
  for (int s = 0; s < n; ++s) up[s] = {io.turned[s], padded_to(r, V::N), 1, r, tile + s * r * W};
  product<V>(up, n, d, W, vectors, {x, W, nullptr, nullptr, g});
  turn_out<V>(x, W, rows, d, io.grad_x + begin * d, d);
}

// Second pass. block[k][0..W) = a[k * ld + 0..width), times b where given, 0 beyond width.
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

// The same for many columns, W at a time: panels[j / W][k][0..W). Row by row, so that a page of
// the inputs is met once.
template <typename V>
LR_INLINE void load_panels(const typename V::T* a, const typename V::T* b, int64_t ld, int64_t rows,
                           int64_t width, int64_t W, typename V::T* panels) {
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t j = 0; j < width; j += W) {
      const int64_t at = k * ld + j, left = width - j < W ? width - j : W;
      load_block<V>(a + at, b ? b + at : b, ld, 1, left, W, panels + (j / W * rows + k) * W);
    }
}

// Columns that one task of the second pass takes at a time: the chunks of dt and x lie in L2.
constexpr int64_t kSumColumns = 256;

// Elements of scratch for one block of columns; W: a panel's width.
static inline int64_t sum_scratch(int64_t r, int projections, int64_t W) {
  const int64_t gradients = padded_to(r, W) + padded_to(projections * r, W);
  return (2 * kSumColumns + W) * kSumRows + kSumColumns * (gradients + 1);
}

// Columns [j0, j0 + width), width <= kSumColumns: their part of du, dbias and of every
// projection's gradient, summed over all samples in chunks of kSumRows, first to last.
template <typename V>
LR_INLINE void weight_columns(const Layer<typename V::T>& layer, const Backward<typename V::T>& io,
                              int64_t batch, int64_t j0, int64_t width,
                              const WeightGradient<typename V::T>& out, typename V::T* scratch) {
  using T = typename V::T;
  constexpr int64_t W = kTileVectors * V::N;
  const int64_t d = layer.d, r = layer.r, m = layer.projections * r;
  const int64_t padded = padded_to(r, W), all = padded_to(m, W);
  const T* low = io.mixed ? io.mixed : io.hidden && layer.projections == 1 ? io.hidden : io.p;
  T *dt = scratch, *x = dt + kSumRows * kSumColumns, *panel = x + kSumRows * kSumColumns;
  T *du = panel + kSumRows * W, *din = du + kSumColumns * padded, *db = din + kSumColumns * all;
  for (int64_t i = 0; i < kSumColumns * (padded + all + 1); ++i) du[i] = 0;
  for (int64_t b = 0; b < batch; b += kSumRows) {
    const int64_t rows = batch - b < kSumRows ? batch - b : kSumRows, at = b * d + j0;
    load_panels<V>(io.grad + at, io.x0 + at, d, rows, width, W, dt);
    load_panels<V>(io.x + at, nullptr, d, rows, width, W, x);
    for (int64_t j = 0; j < width; j += W)
      for (int64_t lane = j; lane < j + W; lane += V::N) {
        V total = V::set1(0);
        for (int64_t k = 0; k < rows; ++k)
          total = total + V::load(dt + j * rows + k * W + lane - j);
        (V::load(db + lane) + total).store(db + lane);
      }
    for (int64_t i = 0; i < r; i += W) {
      load_block<V>(low + b * r + i, nullptr, r, rows, r - i < W ? r - i : W, W, panel);
      for (int64_t j = 0; j < width; j += W) {
        T* to = du + j * padded + i;
        const Product<T> one = {dt + j * rows, 1, W, rows, panel};
        product<V>(&one, 1, W, W, kTileVectors, {to, padded, nullptr, nullptr, to});
      }
    }
    for (int64_t i = 0; i < m; i += W) {
      load_block<V>(io.dh + b * m + i, nullptr, m, rows, m - i < W ? m - i : W, W, panel);
      for (int64_t j = 0; j < width; j += W) {
        T* to = din + i * kSumColumns + j;
        const Product<T> one = {panel, 1, W, rows, x + j * rows};
        product<V>(&one, 1, W, W, kTileVectors, {to, kSumColumns, nullptr, nullptr, to});
      }
    }
  }
  memcpy(out.bias + j0, db, width * sizeof(T));
  for (int64_t j = 0; j < width; ++j) memcpy(out.u + (j0 + j) * r, du + j * padded, r * sizeof(T));
  for (int64_t i = 0; i < m; ++i)
    memcpy(out.in[i / r] + i % r * d + j0, din + i * kSumColumns, width * sizeof(T));
}

#define LR_CROSS(V, T)                                                                             \
  static int64_t lanes(const T*) { return V::N; }                                                  \
  static void cross_forward(const Layer<T>& layer, const T* x0, const T* x, int64_t begin,         \
                            int64_t end, int vectors, T* y, Kept<T> kept, T* scratch) {            \
    forward_range<V>(layer, x0, x, begin, end, vectors, y, kept, scratch);                         \
  }                                                                                                \
  static void cross_small(const Layer<T>& layer, const T* x0, const T* x, int64_t begin,           \
                          int64_t end, T* y, Kept<T> kept, T* scratch) {                           \
    small_range<V>(layer, x0, x, begin, end, y, kept, scratch);                                    \
  }                                                                                                \
  static void cross_net(const Net<T>& net, const T* x, int64_t begin, int64_t end, int vectors,    \
                        T* y, T* scratch) {                                                        \
    net_range<V>(net, x, begin, end, vectors, y, scratch);                                         \
  }                                                                                                \
  static void cross_small_net(const Net<T>& net, const T* x, int64_t begin, int64_t end, T* y,     \
                              T* scratch) {                                                        \
    small_net_range<V>(net, x, begin, end, y, scratch);                                            \
  }                                                                                                \
  static void cross_backward(const Layer<T>& layer, const Backward<T>& io, int64_t begin,          \
                             int64_t end, int vectors, T* scratch) {                               \
    backward_range<V>(layer, io, begin, end, vectors, scratch);                                    \
  }                                                                                                \
  static void cross_weights(const Layer<T>& layer, const Backward<T>& io, int64_t batch,           \
                            int64_t j0, int64_t width, const WeightGradient<T>& out, T* scratch) { \
    weight_columns<V>(layer, io, batch, j0, width, out, scratch);                                  \
  }                                                                                                \
  static int64_t turned_width(int64_t rows, const T*) { return padded_to(rows, V::N); }            \
  static void turn_weights(const T* a, int64_t rows, int64_t columns, T* turned) {                 \
    turn_in<V>(a, columns, rows, columns, turned, padded_to(rows, V::N),                           \
               (int)(padded_to(rows, V::N) / V::N));                                               \
  }
LR_CROSS(f32, float)
LR_CROSS(f64, double)
#undef LR_CROSS
static int64_t sum_columns() { return kSumColumns; }
static int tile_vectors() { return kTileVectors; }
