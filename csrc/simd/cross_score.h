// Candidates of one request through a residual cross net, for one instruction set.
//
// A tile holds W transposed candidates as in cross_tile_product.h, and of their input only the
// candidates' own half c. With u the request's half, layer l is
//   h_l = V_l^c x_l^c + k_l + sum_j M_lj p_j,  x_{l+1}^c = c * (U_l^c p_l + b_l^c) + x_l^c,
// where p is h, or what attention makes of it. Folding computes k_l = V_l^u (u + sum_j u * b_j^u)
// and M_lj = V_l^u diag(u) U_j^u once per request: as products whose "samples" are the columns of
// U_j^u, which lie along the lanes as they are. Where a request has too few candidates for that,
// x_l^u is computed for the tile and multiplied by V_l^u; k_0 is shared always. A weight after the
// net is folded in the same way, or reads x_L^u.

#include "simd/cross_lanes.h"
#include "simd/cross_tile_product.h"
#include "simd/cross_dots.h"

template <typename T>
LR_INLINE int64_t out_dim(const ScoreNet<T>& net) {
  return net.merge == 2 && net.counts[0] && net.counts[1] ? 2 * net.d : net.d;
}

// Column of the weight where the stack's part starts.
template <typename T>
LR_INLINE int64_t weight_at(const ScoreNet<T>& net, int stack) {
  return stack == 1 && out_dim(net) > net.d ? net.d : 0;
}

// What the states of both stacks are multiplied by after their sum.
template <typename T>
LR_INLINE T factor_of(const ScoreNet<T>& net) {
  return net.merge == 1 && net.counts[0] && net.counts[1] ? T(0.5) : T(1);
}

// out[i] = sum_k a[i * row + k] * x[k] + (add ? add[i] : 0)
template <typename T>
static __attribute__((noinline)) void row_dots(const T* a, int64_t row, int64_t rows, int64_t k,
                                               const T* x, const T* add, T* out) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += 4) {
    V acc[4];
    const T* from[4];
    for (int m = 0; m < 4; ++m) {
      acc[m] = V::set1(0);
      from[m] = a + (i + m < rows ? i + m : rows - 1) * row;
    }
    for (int64_t j = 0; j < k; j += V::N) {
      const V value = load_part(x + j, k - j);
      for (int m = 0; m < 4; ++m) acc[m] = fma(load_part(from[m] + j, k - j), value, acc[m]);
    }
    for (int m = 0; m < 4 && i + m < rows; ++m) out[i + m] = sum(acc[m]) + (add ? add[i + m] : 0);
  }
}

// `columns` numbers wide, a whole number of vectors: product() takes a few vectors at a time.
template <typename T>
LR_INLINE void wide_product(const Product<T>& one, int64_t rows, int64_t ldb, int64_t columns,
                            T* out, int64_t ldo) {
  using V = Vec<T>;
  for (int64_t j = 0; j < columns; j += kTileVectors * V::N) {
    const int64_t left = (columns - j) / V::N;
    const int vectors = (int)(left < kTileVectors ? left : kTileVectors);
    const Product<T> part = {one.a, one.row, one.step, one.k, one.b + j};
    product<T>(part, rows, ldb, vectors, {out + j, ldo, nullptr, nullptr, nullptr});
  }
}

// Rows [0, rows) of a (ld apart) times u and a factor.
template <typename T>
LR_INLINE void times_request(const T* a, int64_t ld, int64_t rows, const T* u, int64_t d_u,
                             T factor, T* out) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < d_u; j += V::N) {
      const V value = load_part(a + i * ld + j, d_u - j) * load_part(u + j, d_u - j);
      store_part(value * V::set1(factor), out + i * d_u + j, d_u - j);
    }
}

template <typename T>
int64_t CrossScore<T>::lanes() {
  return Vec<T>::N;
}
template <typename T>
int64_t CrossScore<T>::most_vectors() {
  return kTileVectors;
}
template <typename T>
int64_t CrossScore<T>::fold_scratch(const ScoreNet<T>& net) {
  return kFoldRows * net.d_u + net.m + 64;
}

template <typename T>
void CrossScore<T>::shifts(const ScoreNet<T>& net, const Folded<T>& f, T* scratch) {
  using V = Vec<T>;
  const int64_t d_u = net.d_u;
  T *t = scratch, *total = scratch + d_u;  // u + sum u * b of a stack, and of both
  for (int64_t j = 0; j < d_u; ++j) total[j] = 0;
  if (f.outer && net.bias)
    for (int64_t i = 0; i < net.m; ++i) f.constant[i] = net.bias[i];
  else if (f.outer)
    for (int64_t i = 0; i < net.m; ++i) f.constant[i] = 0;
  const T factor = factor_of(net);
  for (int stack = 0; stack < 2; ++stack) {
    for (int64_t j = 0; j < d_u; ++j) t[j] = f.u[j];
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      const Layer<T>& layer = net.layers[stack][l];
      T* to = f.shift[net.first[stack] + l];
      for (int s = 0; s < layer.projections && (l == 0 || f.inner[stack]); ++s)
        row_dots<T>(layer.in[s], net.d, layer.r, d_u, t, nullptr, to + s * layer.r);
      for (int64_t j = 0; j < d_u; j += V::N) {
        const int64_t left = d_u - j;
        const V value =
            fma(load_part(f.u + j, left), load_part(layer.bias + j, left), load_part(t + j, left));
        store_part(value, t + j, left);
      }
    }
    if (!f.outer || !net.counts[stack]) continue;
    for (int64_t j = 0; j < d_u; ++j) total[j] = t[j] * factor;
    row_dots<T>(net.weight + weight_at(net, stack), out_dim(net), net.m, d_u, total, f.constant,
                f.constant);
  }
}

template <typename T>
void CrossScore<T>::inner(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t i,
                          int64_t begin, int64_t end, T* scratch) {
  const Layer<T>& layer = net.layers[stack][i];
  const int64_t r = layer.r, d_u = net.d_u, at = net.first[stack],
                all = net.counts[0] + net.counts[1];
  for (int64_t row = begin; row < end; ++row)
    times_request<T>(layer.in[row / r] + row % r * net.d, net.d, 1, f.u, d_u, T(1),
                     scratch + (row - begin) * d_u);
  for (int64_t j = 0; j < i; ++j) {
    const int64_t width = net.width[at + j];
    const Product<T> one = {scratch, d_u, 1, d_u, net.padded[at + j]};
    wide_product<T>(one, end - begin, width, width,
                    f.inner_m[(at + i) * all + at + j] + begin * width, width);
  }
}

template <typename T>
void CrossScore<T>::outer(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t begin,
                          int64_t end, T* scratch) {
  const int64_t d_u = net.d_u, at = net.first[stack], ld = out_dim(net);
  times_request<T>(net.weight + weight_at(net, stack) + begin * ld, ld, end - begin, f.u, d_u,
                   factor_of(net), scratch);
  for (int64_t j = 0; j < net.counts[stack]; ++j) {
    const int64_t width = net.width[at + j];
    const Product<T> one = {scratch, d_u, 1, d_u, net.padded[at + j]};
    wide_product<T>(one, end - begin, width, width, f.outer_m[at + j] + begin * width, width);
  }
}

// ---- one tile ------------------------------------------------------------------------------

// Numbers of the p of all layers, of the widest h, and of attention's own, for one lane.
template <typename T>
LR_INLINE void widths(const ScoreNet<T>& net, int64_t* p, int64_t* h, int64_t* attention) {
  *p = *h = *attention = 0;
  for (int stack = 0; stack < 2; ++stack)
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      const Layer<T>& layer = net.layers[stack][l];
      const int64_t each = layer.projections * layer.r;
      *p += layer.r;
      *h = each > *h ? each : *h;
      const int64_t own = attention_scratch(layer.r, layer.token_dim);
      if (layer.projections == 3) *attention = own > *attention ? own : *attention;
    }
}

template <typename T>
int64_t CrossScore<T>::scratch(const ScoreNet<T>& net, int64_t samples) {
  int64_t p, h, attention;
  widths(net, &p, &h, &attention);
  const int64_t d_c = net.d - net.d_u;
  const int64_t most = d_c > net.d_u ? d_c : net.d_u, work = most > 4 * h ? most : 4 * h;
  const int64_t whole = work > net.m ? work : net.m;
  return samples * (3 * d_c + 3 * net.d_u + p + h + whole + net.m) + 2 * attention + 64;
}

// One stack on a tile: c (d_c x W), spread u (d_u x W), states x_c and x_u, p of all layers.
template <typename T>
struct ScoreTile {
  const T *c, *u;
  T *x_c, *x_u, *h, *p, *work;
  int64_t W, rows, done;  // done: layers that x_u has
  int vectors;
};

template <typename T>
LR_INLINE void advance_request_half(const ScoreNet<T>& net, int stack, ScoreTile<T>& t,
                                    int64_t until, const int64_t* p_at) {
  for (; t.done < until; ++t.done) {
    const Layer<T>& layer = net.layers[stack][t.done];
    const Product<T> one = {layer.u, layer.r, 1, layer.r, t.p + p_at[t.done] * t.W};
    product<T>(one, net.d_u, t.W, t.vectors, {t.x_u, t.W, layer.bias, t.u, t.done ? t.x_u : t.u});
  }
}

template <typename T>
LR_INLINE void score_layer(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t l,
                           ScoreTile<T>& t, const int64_t* p_at) {
  const Layer<T>& layer = net.layers[stack][l];
  const int64_t r = layer.r, d_u = net.d_u, d_c = net.d - d_u, W = t.W;
  const int64_t at = net.first[stack], all = net.counts[0] + net.counts[1];
  const bool folded = l == 0 || f.inner[stack];
  T* p = t.p + p_at[l] * W;
  T* h = layer.projections == 3 ? t.h : p;
  const T *x = l ? t.x_c : t.c, *shift = f.shift[at + l];
  if (!folded) advance_request_half<T>(net, stack, t, l, p_at);
  for (int s = 0; s < layer.projections; ++s) {
    T* to = h + s * r * W;
    const Product<T> own = {layer.in[s] + d_u, net.d, 1, d_c, x};
    product<T>(own, r, W, t.vectors, {to, W, folded ? shift + s * r : nullptr, nullptr, nullptr});
    if (!folded) {
      const Product<T> other = {layer.in[s], net.d, 1, d_u, t.x_u};
      product<T>(other, r, W, t.vectors, {to, W, nullptr, nullptr, to});
    }
  }
  for (int64_t j = 0; j < l && f.inner[stack]; ++j) {
    const int64_t width = net.width[at + j], k = net.layers[stack][j].r;
    const Product<T> one = {f.inner_m[(at + l) * all + at + j], width, 1, k, t.p + p_at[j] * W};
    product<T>(one, layer.projections * r, W, t.vectors, {h, W, nullptr, nullptr, h});
  }
  if (layer.projections == 3) {
    T *own = t.work, *result = own + W * 3 * r;
    transpose_out<T>(h, W, t.rows, 3 * r, own, 3 * r);
    for (int64_t b = 0; b < t.rows; ++b)
      CrossAttention<T>::sample(layer, own + b * 3 * r, result + b * r, result + W * r);
    transpose_in<T>(result, r, t.rows, r, p, W, t.vectors);
  }
  const Product<T> back = {layer.u + d_u * r, r, 1, r, p};
  product<T>(back, d_c, W, t.vectors, {t.x_c, W, layer.bias + d_u, t.c, x});
}

template <typename T>
void CrossScore<T>::tile(const ScoreNet<T>& net, const Folded<T>& f, const T* items, int64_t rows,
                         int vectors, T* y, T* scratch) {
  using V = Vec<T>;
  const int64_t d_u = net.d_u, d_c = net.d - d_u, W = vectors * V::N, m = net.m;
  int64_t all_p, wide, attention;
  widths(net, &all_p, &wide, &attention);
  T *c = scratch, *u = c + d_c * W, *states = u + d_u * W;
  T *p = states + 2 * net.d * W, *h = p + all_p * W, *out = h + wide * W, *work = out + m * W;
  transpose_in<T>(items, d_c, rows, d_c, c, W, vectors);
  const bool request_half = !f.outer || !f.inner[0] || !f.inner[1];
  if (request_half)
    for (int64_t j = 0; j < d_u; ++j)
      for (int64_t n = 0; n < W; n += V::N) V::set1(f.u[j]).store(u + j * W + n);
  ScoreTile<T> tiles[2];
  int64_t p_at[2][kMostLayers], next = 0;
  for (int stack = 0; stack < 2; ++stack) {
    T* state = states + stack * net.d * W;
    tiles[stack] = {c, u, state + d_u * W, state, h, p, work, W, rows, 0, vectors};
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      p_at[stack][l] = next;
      next += net.layers[stack][l].r;
      score_layer<T>(net, f, stack, l, tiles[stack], p_at[stack]);
    }
    if (!f.outer) advance_request_half<T>(net, stack, tiles[stack], net.counts[stack], p_at[stack]);
  }
  const int single = net.counts[0] ? 0 : 1;
  const bool both = net.counts[0] && net.counts[1], joined = both && net.merge != 2;
  // Only what was computed is added: x_u is not there where it is folded.
  if (joined) {
    const T factor = factor_of(net);
    merge_states<T>(tiles[0].x_c, tiles[1].x_c, d_c * W, factor);
    if (!f.outer) merge_states<T>(tiles[0].x_u, tiles[1].x_u, d_u * W, factor);
  }
  const int last = both && !joined ? 2 : single + 1, ld = (int)out_dim(net);
  if (!net.weight) {
    for (int stack = single; stack < last; ++stack) {
      T* to = y + weight_at(net, stack);
      transpose_out<T>(tiles[stack].x_u, W, rows, d_u, to, ld);
      transpose_out<T>(tiles[stack].x_c, W, rows, d_c, to + d_u, ld);
    }
    return;
  }
  const T* start = f.outer ? f.constant : net.bias;
  const T* add = nullptr;
  for (int stack = single; stack < last; ++stack) {
    const T* weight = net.weight + weight_at(net, stack);
    const Product<T> own = {weight + d_u, ld, 1, d_c, tiles[stack].x_c};
    product<T>(own, m, W, vectors, {out, W, start, nullptr, add});
    start = nullptr;
    add = out;
    if (f.outer) continue;
    const Product<T> other = {weight, ld, 1, d_u, tiles[stack].x_u};
    product<T>(other, m, W, vectors, {out, W, nullptr, nullptr, out});
  }
  for (int stack = 0; stack < 2 && f.outer; ++stack)
    for (int64_t l = 0; l < net.counts[stack]; ++l) {
      const int64_t i = net.first[stack] + l;
      const Product<T> one = {f.outer_m[i], net.width[i], 1, net.layers[stack][l].r,
                              p + p_at[stack][l] * W};
      product<T>(one, m, W, vectors, {out, W, nullptr, nullptr, out});
    }
  transpose_out<T>(out, W, rows, m, y, m);
}

#include "simd/cross_score_few.h"

template struct CrossScore<float>;
template struct CrossScore<double>;
