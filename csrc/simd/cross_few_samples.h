// Cross layers on few samples (up to kSmallBatch), without packing or transposing anything.
//
// Every product is a dot product of a weight row and a sample, which are both contiguous. The
// accumulators are those of 4 rows by 4 samples, so 8 loads feed 16 FMAs, and each weight is read
// once from L2 or memory. The 16 accumulators are reduced together, in 30 shuffles and 15
// additions.
//
// A sample's result does not depend on the other samples or on the number of threads.

#include "simd/cross_dots.h"

// y = x0 * (u p + bias) + x for a few samples; y may be x. h: samples x 4r, t: samples x d.
template <typename T>
LR_INLINE void small_layer(const Layer<T>& layer, const T* x0, const T* x, T* y, int64_t samples,
                           T* h, T* t, T* scratch) {
  using V = Vec<T>;
  const int64_t d = layer.d, r = layer.r, ldh = layer.projections * r;
  for (int s = 0; s < layer.projections; ++s)
    dots<T>(layer.in[s], d, r, d, x, d, samples, h + s * r, ldh);
  const T* p = h;
  if (layer.projections == 3) {
    T* result = h + samples * ldh;
    for (int64_t b = 0; b < samples; ++b)
      CrossAttention<T>::sample(layer, h + b * ldh, result + b * r, scratch);
    p = result;
  }
  dots<T>(layer.u, r, d, r, p, r, samples, t, d);
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t j = 0; j < d; j += V::N) {
      const int64_t left = d - j, at = b * d + j;
      V value = load_part(t + at, left);
      if (layer.bias) value = value + load_part(layer.bias + j, left);
      value = fma(value, load_part(x0 + at, left), load_part(x + at, left));
      store_part(value, y + at, left);
    }
}

// Elements of scratch: t and one state of width d, h and the attention's own.
template <typename T>
int64_t CrossFewSamples<T>::scratch(int64_t d, int64_t r, int64_t token_dim, int projections,
                                    int64_t samples) {
  const int64_t attention = projections == 3 ? attention_scratch(r, token_dim) : 0;
  return samples * (d + 4 * r) + attention + 64;
}

// Samples [begin, end) through one layer.
template <typename T>
void CrossFewSamples<T>::layer(const Layer<T>& layer, const T* x0, const T* x, int64_t begin,
                               int64_t end, T* y, SavedActivations<T> kept, T* scratch) {
  const int64_t d = layer.d, samples = end - begin, at = begin * d;
  const int64_t m = layer.projections * layer.r;
  T *t = scratch, *h = t + samples * d;
  small_layer<T>(layer, x0 + at, x + at, y + at, samples, h, t, h + samples * 4 * layer.r);
  if (kept.hidden)
    for (int64_t b = 0; b < samples; ++b)
      memcpy(kept.hidden + (begin + b) * kept.columns, h + b * m, kept.columns * sizeof(T));
  if (kept.mixed)
    memcpy(kept.mixed + begin * layer.r, h + samples * m, samples * layer.r * sizeof(T));
}

// Both stacks. scratch: two states and that of the widest layer.
template <typename T>
void CrossFewSamples<T>::net(const Net<T>& net, const T* x, int64_t begin, int64_t end, T* y,
                             T* scratch) {
  const int64_t d = net.d, samples = end - begin, size = samples * d;
  const T* x0 = x + begin * d;
  T *state[2] = {scratch, scratch + size}, *t = scratch + 2 * size, *h = t + size;
  for (int stack = 0; stack < 2; ++stack) {
    const Layer<T>* layers = stack ? net.attention : net.low_rank;
    const int64_t count = stack ? net.num_attention : net.num_low_rank;
    for (int64_t i = 0; i < count; ++i)
      small_layer<T>(layers[i], x0, i ? state[stack] : x0, state[stack], samples, h, t,
                     h + samples * 4 * layers[i].r);
  }
  if (net.merge == 2) {
    for (int64_t b = 0; b < samples; ++b)
      for (int stack = 0; stack < 2; ++stack)
        memcpy(y + (2 * (begin + b) + stack) * d, state[stack] + b * d, d * sizeof(T));
    return;
  }
  merge_states<T>(state[0], state[1], size, net.merge ? T(0.5) : T(1));
  memcpy(y + begin * d, state[0], size * sizeof(T));
}

template struct CrossFewSamples<float>;
template struct CrossFewSamples<double>;
