// The attention of one sample of a layer, for one instruction set.

// h: q, k, v, each r; out: what goes into u, (r).
template <typename V>
LR_INLINE void attend_sample(const Layer<typename V::T>& layer, const typename V::T* h,
                             typename V::T* out, typename V::T* scratch) {
  const int64_t r = layer.r, t = layer.token_dim;
  if (t == 1)
    attend<V>(h, h + r, h + 2 * r, r, layer.scale, out, scratch);
  else
    attend_tokens<V>(h, h + r, h + 2 * r, r / t, t, layer.scale, out, scratch);
  if (layer.skip)
    for (int64_t i = 0; i < r; ++i) out[i] += h[2 * r + i];
}
