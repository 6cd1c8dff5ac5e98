// A few candidates of one request, for one instruction set: as cross_score.h, but without
// transposing, by the dot products of cross_few_samples.h. A tile would compute whole vectors of
// candidates.

// out = (or +=, with spare) the products of samples x with rows of a, plus a row of bias or null.
template <typename T>
LR_INLINE void few_product(const T* a, int64_t lda, int64_t rows, int64_t k, const T* x,
                           int64_t ldx, int64_t samples, const T* bias, T* out, int64_t ldo,
                           T* spare) {
  using V = Vec<T>;
  T* to = spare ? spare : out;
  const int64_t ld = spare ? rows : ldo;
  dots<T>(a, lda, rows, k, x, ldx, samples, to, ld);
  if (!spare && !bias) return;
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t j = 0; j < rows; j += V::N) {
      const int64_t left = rows - j;
      V value = load_part(to + b * ld + j, left);
      if (spare) value = value + load_part(out + b * ldo + j, left);
      if (bias) value = value + load_part(bias + j, left);
      store_part(value, out + b * ldo + j, left);
    }
}

// y = x0 * (u p + bias) + x on n columns; x0 and x in rows of ld0 and ldx, 0 for one row.
template <typename T>
LR_INLINE void few_state(const T* u, int64_t r, const T* bias, int64_t n, const T* p,
                         int64_t samples, const T* x0, int64_t ld0, const T* x, int64_t ldx, T* y,
                         T* t) {
  using V = Vec<T>;
  dots<T>(u, r, n, r, p, r, samples, t, n);
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t j = 0; j < n; j += V::N) {
      const int64_t left = n - j;
      const V value = load_part(t + b * n + j, left) + load_part(bias + j, left);
      store_part(fma(value, load_part(x0 + b * ld0 + j, left), load_part(x + b * ldx + j, left)),
                 y + b * n + j, left);
    }
}

template <typename T>
LR_INLINE void few_request_half(const ScoreNet<T>& net, const Folded<T>& f, int stack,
                                ScoreTile<T>& t, int64_t until, const int64_t* p_at) {
  for (; t.done < until; ++t.done) {
    const Layer<T>& layer = net.layers[stack][t.done];
    few_state<T>(layer.u, layer.r, layer.bias, net.d_u, t.p + p_at[t.done] * t.rows, t.rows, f.u, 0,
                 t.done ? t.x_u : f.u, t.done ? net.d_u : 0, t.x_u, t.work);
  }
}

template <typename T>
LR_INLINE void few_layer(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t l,
                         ScoreTile<T>& t, const int64_t* p_at) {
  const Layer<T>& layer = net.layers[stack][l];
  const int64_t r = layer.r, d_u = net.d_u, d_c = net.d - d_u, rows = t.rows;
  const int64_t at = net.first[stack], all = net.counts[0] + net.counts[1];
  const int64_t wide = layer.projections * r;
  const bool folded = l == 0 || f.inner[stack];
  T* p = t.p + p_at[l] * rows;
  T* h = layer.projections == 3 ? t.h : p;
  const T *x = l ? t.x_c : t.c, *shift = f.shift[at + l];
  if (!folded) few_request_half<T>(net, f, stack, t, l, p_at);
  for (int s = 0; s < layer.projections; ++s) {
    few_product<T>(layer.in[s] + d_u, net.d, r, d_c, x, d_c, rows, folded ? shift + s * r : nullptr,
                   h + s * r, wide, nullptr);
    if (!folded)
      few_product<T>(layer.in[s], net.d, r, d_u, t.x_u, d_u, rows, nullptr, h + s * r, wide,
                     t.work);
  }
  for (int64_t j = 0; j < l && f.inner[stack]; ++j) {
    const int64_t k = net.layers[stack][j].r;
    few_product<T>(f.inner_m[(at + l) * all + at + j], net.width[at + j], wide, k,
                   t.p + p_at[j] * rows, k, rows, nullptr, h, wide, t.work);
  }
  if (layer.projections == 3)
    for (int64_t b = 0; b < rows; ++b)
      CrossAttention<T>::sample(layer, h + b * wide, p + b * r, t.work);
  few_state<T>(layer.u + d_u * r, r, layer.bias + d_u, d_c, p, rows, t.c, d_c, x, d_c, t.x_c,
               t.work);
}

template <typename T>
void CrossScore<T>::few(const ScoreNet<T>& net, const Folded<T>& f, const T* items, int64_t rows,
                        T* y, T* scratch) {
  const int64_t d_u = net.d_u, d_c = net.d - d_u, m = net.m, ld = out_dim(net);
  int64_t all_p, wide, attention;
  widths(net, &all_p, &wide, &attention);
  T *states = scratch, *p = states + 2 * net.d * rows, *h = p + all_p * rows;
  T* work = h + wide * rows;
  ScoreTile<T> tiles[2];
  int64_t p_at[2][kMostLayers], next = 0;
  for (int stack = 0; stack < 2; ++stack) {
    T* state = states + stack * net.d * rows;
    tiles[stack] = {items, f.u, state + d_u * rows, state, h, p, work, rows, rows, 0, 0};
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      p_at[stack][l] = next;
      next += net.layers[stack][l].r;
      few_layer<T>(net, f, stack, l, tiles[stack], p_at[stack]);
    }
    if (!f.outer) few_request_half<T>(net, f, stack, tiles[stack], net.counts[stack], p_at[stack]);
  }
  const int single = net.counts[0] ? 0 : 1;
  const bool both = net.counts[0] && net.counts[1], joined = both && net.merge != 2;
  if (joined) {
    merge_states<T>(tiles[0].x_c, tiles[1].x_c, d_c * rows, factor_of(net));
    if (!f.outer) merge_states<T>(tiles[0].x_u, tiles[1].x_u, d_u * rows, factor_of(net));
  }
  const int last = both && !joined ? 2 : single + 1;
  for (int stack = single; stack < last; ++stack) {
    const ScoreTile<T>& t = tiles[stack];
    const int64_t at = weight_at(net, stack);
    if (!net.weight) {
      for (int64_t b = 0; b < rows; ++b) {
        memcpy(y + b * ld + at, t.x_u + b * d_u, (size_t)d_u * sizeof(T));
        memcpy(y + b * ld + at + d_u, t.x_c + b * d_c, (size_t)d_c * sizeof(T));
      }
      continue;
    }
    const bool first = stack == single;
    const T* start = !first ? nullptr : f.outer ? f.constant : net.bias;
    few_product<T>(net.weight + at + d_u, ld, m, d_c, t.x_c, d_c, rows, start, y, m,
                   first ? nullptr : work);
    if (!f.outer)
      few_product<T>(net.weight + at, ld, m, d_u, t.x_u, d_u, rows, nullptr, y, m, work);
  }
  for (int stack = 0; stack < 2 && f.outer; ++stack)
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      const int64_t i = net.first[stack] + l, k = net.layers[stack][l].r;
      few_product<T>(f.outer_m[i], net.width[i], m, k, p + p_at[stack][l] * rows, k, rows, nullptr,
                     y, m, work);
    }
}
