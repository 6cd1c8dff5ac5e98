// Cross layers on tiles of samples, for one instruction set. The products are described in
// cross_tile_product.h, the attention in cross_attend.h.
//
// Forward: a tile's x0 and x are turned once, stay in L2 through all layers, and are turned
// back once. One layer alone, on many samples, is in cross_rows.h, its backward in
// cross_backward.h.

#include "simd/convert.h"
#include "simd/cross_lanes.h"
#include "simd/cross_tile_product.h"
#include "simd/cross_attend.h"
#include "simd/cross_chebyshev.h"
#include "simd/cross_attend_sample.h"
#include "simd/cross_few_samples.h"

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
    product<V>(one, layer.r, W, vectors, {h + s * layer.r * W, W, nullptr, nullptr, nullptr});
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
    turn_out<V>(h, W, rows, kept.columns, kept.hidden, kept.columns);
  }
  const Product<T> back = {layer.u, r, 1, r, hidden};
  product<V>(back, layer.d, W, vectors, {y, W, layer.bias, x0, x});
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
  if (kept.hidden) kept.hidden += begin * kept.columns;
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
  if (kept.hidden)
    for (int64_t b = 0; b < samples; ++b)
      memcpy(kept.hidden + (begin + b) * kept.columns, h + b * m, kept.columns * sizeof(T));
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
                    p, work, {nullptr, nullptr, 0});
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

#include "simd/cross_rows.h"
#include "simd/cross_backward.h"

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
  static void cross_rows(const Layer<T>& layer, const Packed<T>& w, const T* x0, const T* x,       \
                         int64_t begin, int64_t end, int64_t batch, T* y, Kept<T> kept,            \
                         T* scratch) {                                                             \
    forward_rows<V>(layer, w, x0, x, begin, end, batch, y, kept, scratch);                         \
  }                                                                                                \
  static void cross_backward(const Layer<T>& layer, const Packed<T>& w, const Backward<T>& io,     \
                             int64_t begin, int64_t end, int64_t batch, T* scratch) {              \
    backward_rows<V>(layer, w, io, begin, end, batch, scratch);                                    \
  }                                                                                                \
  static void cross_weights(const Layer<T>& layer, const Backward<T>& io, int64_t batch,           \
                            int64_t j0, int64_t width, const WeightGradient<T>& out, T* scratch) { \
    weight_columns<V>(layer, io, batch, j0, width, out, scratch);                                  \
  }                                                                                                \
  static int64_t packed_size(int64_t columns, int64_t k, const T*) {                               \
    return padded_to(columns, V::N) * k;                                                           \
  }                                                                                                \
  static void pack(const Packing<T>& one, int64_t part, int64_t parts) {                           \
    pack_panels<V>(one, part, parts);                                                              \
  }
LR_CROSS(f32, float)
LR_CROSS(f64, double)
#undef LR_CROSS

static int64_t sum_columns() { return kSumColumns; }
static int tile_vectors() { return kTileVectors; }
static int row_vectors() { return kRowVectors; }
