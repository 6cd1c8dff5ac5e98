// Cross layers and nets in bfloat16, for one processor's products: see cross_bf16_products.h.

// Scratch of a task, in floats, for layers up to (d, r, projections).
struct Bf16Scratch {
  float *hidden, *rows, *mixed, *attention, *chunk, *transposed, *state[2];
  uint16_t *padded, *split_x, *split_p, *panels;
  int64_t floats = 0;

  Bf16Scratch(float* at, int64_t d, int64_t r, int64_t token_dim, int64_t projections, bool net) {
    const int64_t s = kTileSamples, wide = padded_to(d, 32), deep = padded_to(r, 32);
    const auto take = [&](int64_t n) {
      float* const found = at ? at + floats : nullptr;
      floats += padded_to(n, 16);
      return found;
    };
    hidden = take(s * padded_to(projections * r, 16));
    rows = take(projections == 3 ? s * padded_to(projections * r, 16) : 0);
    mixed = take(r);
    attention = take(projections == 3 ? attention_scratch(r, token_dim) + 64 : 0);
    chunk = take(s * kChunk);
    transposed = take(s * kChunk);
    for (float*& one : state) one = take(net ? s * wide : 0);
    padded = (uint16_t*)take(s * wide / 2);
    split_x = (uint16_t*)take(net ? s * wide : 0);
    split_p = (uint16_t*)take(s * deep);
    const int64_t x_panels = net ? s * wide : s * wide / 2;
    panels = (uint16_t*)take(x_panels > s * deep ? x_panels : s * deep);
  }
};

int64_t scratch(int64_t d, int64_t r, int64_t token_dim, int64_t projections, bool net) {
  return Bf16Scratch(nullptr, d, r, token_dim, projections, net).floats;
}

// Rows of width d as an operand: as they lie, or copied where tiles would read beyond them.
LR_INLINE Bf16Rows operand_of(const uint16_t* x, int64_t rows, int64_t samples, int64_t d,
                              uint16_t* padded) {
  if (rows == samples && d % 32 == 0) return {x, nullptr, d};
  const int64_t wide = padded_to(d, 32);
  for (int64_t b = 0; b < samples; ++b) {
    const int64_t n = b < rows ? d : 0;
    if (n > 0) memcpy(padded + b * wide, x + b * d, (size_t)n * 2);
    memset(padded + b * wide + n, 0, (size_t)(wide - n) * 2);
  }
  return {padded, nullptr, wide};
}

// Attention or nothing, from one sample's projections h to what goes into u.
LR_INLINE const float* mixed_of(const Layer<float>& l, const float* h, const Bf16Scratch& s) {
  if (l.projections == 1) return h;
  avx512::CrossAttention<float>::sample(l, h, s.mixed, s.attention);
  return s.mixed;
}

LR_INLINE Bf16Product by_weights(const Bf16Rows& x, const uint16_t* panels, int64_t depth) {
  return {x.high, x.low, x.ld, panels, nullptr, depth};
}
LR_INLINE Bf16Product of_weights(const uint16_t* w, int64_t k, const uint16_t* high,
                                 const uint16_t* low) {
  return {w, nullptr, k, high, low, k / 32};
}

// Calls one(j, left) for the vectors of n columns; whole chunks without a mask.
template <typename One>
LR_INLINE void each_vector(int64_t n, const One& one) {
  if (n == kChunk) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kChunk; j += 16) one(j, 16);
    return;
  }
  for (int64_t j = 0; j < n; j += 16) one(j, n - j);
}

// t + bias at vector j; bias may be null.
LR_INLINE f32 with_bias(const float* t, const uint16_t* bias, int64_t j, int64_t left) {
  const f32 sum = f32::load(t + j);
  return bias ? sum + bf16_part(bias + j, left) : sum;
}

// Calls finish(b, j, n, t) with t = u p at columns [j, j + n) of sample b < rows, n <= kChunk.
template <typename E, typename Finish>
LR_INLINE void bf16_layer_packed(const Bf16Layer& layer, const Bf16Rows& x, int64_t rows,
                                 int64_t samples, const Bf16Scratch& s,
                                 const Bf16SavedActivations& kept, const Finish& finish) {
  const Layer<float>& l = layer.attention;
  const int64_t d = l.d, r = l.r, ldh = padded_to(l.projections * r, 16), wide = padded_to(r, 32);
  bf16_product<E>(by_weights(x, layer.in, (d + 31) / 32), samples, 0, ldh / 16, s.hidden, ldh);
  const Bf16Rows p = {s.split_p, s.split_p + samples * wide, wide};
  for (int64_t b = 0; b < rows; ++b) {
    const float *h = s.hidden + b * ldh, *mixed = mixed_of(l, h, s);
    if (kept.hidden)
      for (int64_t j = 0; j < kept.columns; j += 16)
        store_bf16(load_part(h + j, kept.columns - j), kept.hidden + b * kept.columns + j,
                   kept.columns - j);
    if (kept.mixed)
      for (int64_t j = 0; j < r; j += 16)
        store_bf16(load_part(mixed + j, r - j), kept.mixed + b * r + j, r - j);
    split_row(mixed, r, wide, s.split_p + b * wide, s.split_p + (samples + b) * wide);
  }
  for (int64_t b = rows; b < samples; ++b) {
    memset(s.split_p + b * wide, 0, (size_t)wide * 2);
    memset(s.split_p + (samples + b) * wide, 0, (size_t)wide * 2);
  }
  const Bf16Product out = by_weights(p, layer.u, wide / 32);
  const int64_t panels = (d + 15) / 16;
  for (int64_t c = 0; c < panels; c += kChunk / 16) {
    const int64_t count = panels - c < kChunk / 16 ? panels - c : kChunk / 16;
    bf16_product<E>(out, samples, c, count, s.chunk, kChunk);
    const int64_t j = 16 * c, n = d - j < kChunk ? d - j : kChunk;
    for (int64_t b = 0; b < rows; ++b) finish(b, j, n, s.chunk + b * kChunk);
  }
}

// Rows of weights times the samples' panels: out[row][sample].
template <typename E>
LR_INLINE void weight_rows(const Bf16Product& a, int64_t rows, int64_t samples, float* out) {
  for (int64_t i = 0; i < rows; i += 32) {
    Bf16Product part = a;
    part.rows = a.rows + i * a.ld;
    bf16_product<E>(part, 32, 0, samples / 16, out + i * samples, samples);
  }
}

// Panels of samples' rows.
LR_INLINE void pack_samples(const uint16_t* rows, int64_t ld, int64_t samples, uint16_t* to) {
  const Bf16Matrix one = {{rows, nullptr, nullptr}, samples, samples, ld, to};
  for (int64_t c = 0; c < samples / 16; ++c) pack(one, c);
}

// The same for few samples; d and r are multiples of 32.
template <typename E, typename Finish>
LR_INLINE void bf16_layer_direct(const Bf16Layer& layer, const Bf16Rows& x, int64_t rows,
                                 int64_t samples, const Bf16Scratch& s, const Finish& finish) {
  const Layer<float>& l = layer.attention;
  const int64_t d = l.d, r = l.r, m = l.projections * r, count = samples / 16;
  pack_samples(x.high, x.ld, samples, s.panels);
  const uint16_t* low = x.low ? s.panels + samples * d : nullptr;
  if (low) pack_samples(x.low, x.ld, samples, s.panels + samples * d);
  for (int64_t i = 0; i < l.projections; ++i)
    weight_rows<E>(of_weights(layer.rows_in[i], d, s.panels, low), r, samples,
                   s.hidden + i * r * samples);
  uint16_t *high_p = s.panels, *low_p = s.panels + samples * r;
  if (l.projections == 1) {  // h lies as the panels want it
    for (int64_t c = 0; c < count; ++c)
      for (int64_t k = 0; k < r; k += 2)
        split_pairs(f32::load(s.hidden + k * samples + 16 * c),
                    f32::load(s.hidden + (k + 1) * samples + 16 * c), high_p + (c * r + k) * 16,
                    low_p + (c * r + k) * 16);
  } else {
    transpose_out(s.hidden, samples, rows, m, s.rows, m);
    for (int64_t b = 0; b < rows; ++b)
      split_row(mixed_of(l, s.rows + b * m, s), r, r, s.split_p + b * r,
                s.split_p + (samples + b) * r);
    for (int64_t b = rows; b < samples; ++b) {
      memset(s.split_p + b * r, 0, (size_t)r * 2);
      memset(s.split_p + (samples + b) * r, 0, (size_t)r * 2);
    }
    pack_samples(s.split_p, r, samples, high_p);
    pack_samples(s.split_p + samples * r, r, samples, low_p);
  }
  Bf16Product out = of_weights(layer.rows_u, r, high_p, low_p);
  for (int64_t j = 0; j < d; j += kChunk) {
    const int64_t n = d - j < kChunk ? d - j : kChunk;
    weight_rows<E>(out, n, samples, s.transposed);
    transpose_out(s.transposed, samples, rows, n, s.chunk, kChunk);
    for (int64_t b = 0; b < rows; ++b) finish(b, j, n, s.chunk + b * kChunk);
    out.rows += n * r;
  }
}

template <typename E, typename Finish>
LR_INLINE void bf16_layer(const Bf16Layer& layer, const Bf16Rows& x, int64_t rows, int64_t samples,
                          const Bf16Scratch& s, const Bf16SavedActivations& kept,
                          const Finish& finish) {
  if (layer.direct)
    bf16_layer_direct<E>(layer, x, rows, samples, s, finish);
  else
    bf16_layer_packed<E>(layer, x, rows, samples, s, kept, finish);
}

// y = x0 (t + bias) + x on n columns of one sample.
LR_INLINE void finish_layer(const float* t, const uint16_t* bias, const uint16_t* x0,
                            const uint16_t* x, int64_t n, uint16_t* y) {
  each_vector(n, [=](int64_t j, int64_t left) {
    const f32 sum = with_bias(t, bias, j, left);
    store_bf16(fma(sum, bf16_part(x0 + j, left), bf16_part(x + j, left)), y + j, left);
  });
}

// The same on a state in float, which starts as x0; and split for the next layer.
LR_INLINE void finish_state(const float* t, const uint16_t* bias, const uint16_t* x0, bool first,
                            int64_t n, float* state, uint16_t* high, uint16_t* low) {
  each_vector(n, [=](int64_t j, int64_t left) {
    const f32 own = bf16_part(x0 + j, left);
    const f32 next = fma(with_bias(t, bias, j, left), own, first ? own : f32::load(state + j));
    next.store(state + j);
    if (high) split(left >= 16 ? next : keep_first(next, left), high + j, low + j);
  });
}

// Samples [begin, end), at most kTileSamples, through one layer.
template <typename E>
LR_INLINE void bf16_layer_range(const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                                int64_t begin, int64_t end, uint16_t* y, Bf16SavedActivations kept,
                                float* scratch) {
  const Layer<float>& l = layer.attention;
  const int64_t d = l.d, rows = end - begin, samples = padded_to(rows, 16);
  const Bf16Scratch s(scratch, d, l.r, l.token_dim, l.projections, false);
  x0 += begin * d;
  x += begin * d;
  y += begin * d;
  if (kept.hidden) kept.hidden += begin * kept.columns;
  if (kept.mixed) kept.mixed += begin * l.r;
  const uint16_t* bias = layer.bias;
  bf16_layer<E>(layer, operand_of(x, rows, samples, d, s.padded), rows, samples, s, kept,
                [=](int64_t b, int64_t j, int64_t n, const float* t) {
                  finish_layer(t, bias ? bias + j : nullptr, x0 + b * d + j, x + b * d + j, n,
                               y + b * d + j);
                });
}

// Both stacks on samples [begin, end), at most kTileSamples.
template <typename E>
LR_INLINE void bf16_net_range(const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
                              int64_t rank, int64_t token_dim, uint16_t* y, float* scratch) {
  const int64_t d = net.d, wide = padded_to(d, 32), rows = end - begin,
                samples = padded_to(rows, 16);
  const Bf16Scratch s(scratch, d, rank, token_dim, 3, true);
  const Bf16Rows first = operand_of(x + begin * d, rows, samples, d, s.padded);
  const Bf16Rows later = {s.split_x, s.split_x + samples * wide, wide};
  for (int stack = 0; stack < 2; ++stack) {
    float* state = s.state[stack];
    const uint16_t* own = x + begin * d;
    uint16_t *high = s.split_x, *low = s.split_x + samples * wide;
    if (rows < samples || padded_to(d, 16) < wide)  // what no layer writes
      memset(s.split_x, 0, (size_t)(2 * samples * wide) * 2);
    for (int64_t i = 0; i < net.count[stack]; ++i) {
      const bool last = i + 1 == net.count[stack];
      const uint16_t* bias = net.stack[stack][i].bias;
      bf16_layer<E>(net.stack[stack][i], i ? later : first, rows, samples, s, {nullptr, nullptr, 0},
                    [=](int64_t b, int64_t j, int64_t n, const float* t) {
                      const int64_t at = b * wide + j;
                      finish_state(t, bias ? bias + j : nullptr, own + b * d + j, i == 0, n,
                                   state + at, last ? nullptr : high + at, low + at);
                    });
    }
  }
  const f32 factor = f32::set1(net.merge == 1 ? 0.5f : 1.0f);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t j = 0; j < d; j += 16) {
      const f32 one = f32::load(s.state[0] + b * wide + j);
      const f32 other = f32::load(s.state[1] + b * wide + j);
      if (net.merge == 2) {
        uint16_t* to = y + (begin + b) * 2 * d + j;
        store_bf16(one, to, d - j);
        store_bf16(other, to + d, d - j);
      } else {
        store_bf16((one + other) * factor, y + (begin + b) * d + j, d - j);
      }
    }
}

// Consecutive tiles of one task.
template <typename E>
LR_INLINE void layer_tiles(const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                           int64_t begin, int64_t end, int64_t step, uint16_t* y,
                           const Bf16SavedActivations& kept, float* scratch) {
  E::start();
  for (int64_t b = begin; b < end; b += step)
    bf16_layer_range<E>(layer, x0, x, b, b + step < end ? b + step : end, y, kept, scratch);
  E::stop();
}

void layer_task(bool tiles, const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                int64_t begin, int64_t end, int64_t step, uint16_t* y,
                const Bf16SavedActivations& kept, float* scratch) {
  if (tiles)
    layer_tiles<Tiles>(layer, x0, x, begin, end, step, y, kept, scratch);
  else
    layer_tiles<Pairs>(layer, x0, x, begin, end, step, y, kept, scratch);
}

template <typename E>
LR_INLINE void net_tiles(const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
                         int64_t step, int64_t rank, int64_t token_dim, uint16_t* y,
                         float* scratch) {
  E::start();
  for (int64_t b = begin; b < end; b += step)
    bf16_net_range<E>(net, x, b, b + step < end ? b + step : end, rank, token_dim, y, scratch);
  E::stop();
}

void net_task(bool tiles, const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
              int64_t step, int64_t rank, int64_t token_dim, uint16_t* y, float* scratch) {
  if (tiles)
    net_tiles<Tiles>(net, x, begin, end, step, rank, token_dim, y, scratch);
  else
    net_tiles<Pairs>(net, x, begin, end, step, rank, token_dim, y, scratch);
}
