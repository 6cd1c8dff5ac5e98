// Cross layers on tiles of samples, for one instruction set. The products are described in
// cross_tile_product.h, the attention in cross_attend.h.
//
// Forward: x0 and x of a tile are transposed once, stay in L2 through all layers, and the result is
// transposed back once. cross_rows.h computes a single layer on many samples, and cross_backward.h
// its backward.

#include "simd/cross_lanes.h"
#include "simd/cross_tile_product.h"
#include "simd/cross_few_samples.h"

// own: rows of q, k, v, (samples, 3r) -> p (r x W); result: the same as rows, (samples, r).
template <typename T>
LR_INLINE void attend_tile(const Layer<T>& layer, const T* own, T* result, T* p, int64_t W,
                           int64_t rows, int vectors, T* scratch) {
  const int64_t r = layer.r;
  for (int64_t b = 0; b < rows; ++b)
    CrossAttention<T>::sample(layer, own + b * 3 * r, result + b * r, scratch);
  transpose_in<T>(result, r, rows, r, p, W, vectors);
}

// Projections of a tile: h (projections * r x W).
template <typename T>
LR_INLINE void project(const Layer<T>& layer, const T* x, T* h, int64_t W, int vectors) {
  for (int s = 0; s < layer.projections; ++s) {
    const Product<T> one = {layer.in[s], layer.d, 1, layer.d, x};
    product<T>(one, layer.r, W, vectors, {h + s * layer.r * W, W, nullptr, nullptr, nullptr});
  }
}

// y = x0 * (u p + bias) + x on a tile; y may be x, not x0. h: 3r x W, p: r x W; kept: what
// training keeps of these samples, or null pointers.
template <typename T>
LR_INLINE void layer_tile(const Layer<T>& layer, const T* x0, const T* x, T* y, int64_t W,
                          int64_t rows, int vectors, T* h, T* p, T* work,
                          SavedActivations<T> kept) {
  const int64_t r = layer.r;
  project<T>(layer, x, h, W, vectors);
  const T* hidden = h;
  if (layer.projections == 3) {
    T *own = kept.hidden ? kept.hidden : work, *spare = work + W * 3 * r;
    T* result = kept.mixed ? kept.mixed : spare;
    transpose_out<T>(h, W, rows, 3 * r, own, 3 * r);
    attend_tile<T>(layer, own, result, p, W, rows, vectors, spare + W * r);
    hidden = p;
  } else if (kept.hidden) {
    transpose_out<T>(h, W, rows, kept.columns, kept.hidden, kept.columns);
  }
  const Product<T> back = {layer.u, r, 1, r, hidden};
  product<T>(back, layer.d, W, vectors, {y, W, layer.bias, x0, x});
}

// Elements of scratch for a tile of W lanes: 3 of width d, and the hidden ones.
template <typename T>
int64_t CrossTiles<T>::scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                               int64_t W) {
  if (projections == 1) return W * (3 * d + 2 * r);
  return W * (3 * d + 3 * r + r + 4 * r + 4 * r) + 2 * attention_scratch(r, token_dim);
}

// Samples [begin, end), at most W of them, through one layer.
template <typename T>
void CrossTiles<T>::layer(const Layer<T>& layer, const T* x0, const T* x, int64_t begin,
                          int64_t end, int vectors, T* y, SavedActivations<T> kept, T* scratch) {
  using V = Vec<T>;
  const int64_t d = layer.d, r = layer.r, rows = end - begin, W = vectors * V::N;
  T *tile0 = scratch, *tile = tile0 + d * W, *out = tile + d * W, *h = out + d * W;
  T *p = h + layer.projections * r * W, *work = p + r * W;
  transpose_in<T>(x0 + begin * d, d, rows, d, tile0, W, vectors);
  const T* from = tile0;
  if (x != x0) {
    transpose_in<T>(x + begin * d, d, rows, d, tile, W, vectors);
    from = tile;
  }
  if (kept.hidden) kept.hidden += begin * kept.columns;
  if (kept.mixed) kept.mixed += begin * r;
  layer_tile<T>(layer, tile0, from, out, W, rows, vectors, h, p, work, kept);
  transpose_out<T>(out, W, rows, d, y + begin * d, d);
}

// Both stacks on samples [begin, end). scratch: that of the widest layer.
template <typename T>
void CrossTiles<T>::net(const Net<T>& net, const T* x, int64_t begin, int64_t end, int vectors,
                        T* y, T* scratch) {
  using V = Vec<T>;
  const int64_t d = net.d, rows = end - begin, W = vectors * V::N;
  T *tile0 = scratch, *state[2] = {tile0 + d * W, tile0 + 2 * d * W}, *h = tile0 + 3 * d * W;
  transpose_in<T>(x + begin * d, d, rows, d, tile0, W, vectors);
  for (int stack = 0; stack < 2; ++stack) {
    const Layer<T>* layers = stack ? net.attention : net.low_rank;
    const int64_t count = stack ? net.num_attention : net.num_low_rank;
    for (int64_t i = 0; i < count; ++i) {
      T *p = h + layers[i].projections * layers[i].r * W, *work = p + layers[i].r * W;
      layer_tile<T>(layers[i], tile0, i ? state[stack] : tile0, state[stack], W, rows, vectors, h,
                    p, work, {nullptr, nullptr, 0});
    }
  }
  if (net.merge == 2) {
    transpose_out<T>(state[0], W, rows, d, y + begin * 2 * d, 2 * d);
    transpose_out<T>(state[1], W, rows, d, y + begin * 2 * d + d, 2 * d);
    return;
  }
  merge_states<T>(state[0], state[1], d * W, net.merge ? T(0.5) : T(1));
  transpose_out<T>(state[0], W, rows, d, y + begin * d, d);
}

template <typename T>
int64_t CrossTiles<T>::lanes() {
  return Vec<T>::N;
}

template <typename T>
int64_t CrossTiles<T>::most_vectors() {
  return kTileVectors;
}

template struct CrossTiles<float>;
template struct CrossTiles<double>;
