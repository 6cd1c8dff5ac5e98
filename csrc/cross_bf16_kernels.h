// Cross layers in bfloat16 with products of bfloat16, AVX-512 and up.
//
// Every product is (rows x k) (k x columns), up to 32 rows at a time. The columns run along the
// lanes, packed: a panel is 16 columns, for each pair of k one vector of 16 pairs; a block is 16
// such vectors, 1 KB. What multiplies is one of two:
// - tiles (AMX): 2 x 2 tiles of 16 x 16 sums, each instruction 16 x 16 x 32 products, 512
//   multiply-adds a cycle where float FMAs do 32;
// - pairs (vdpbf16ps): 4 x 4 vectors of sums, 32 products an instruction: twice the rate of float
//   FMAs on Zen 4 and 5, half of it on a Xeon with AMX.
// Which side is packed: with many samples the weights, once a call (0.45 cycles each); with few
// the samples, and weights are read where they lie, but results are turned (kDirect in
// cross_bf16.cpp).
//
// Precision: inputs and weights are bfloat16 and multiply exactly; sums are float. What is not
// bfloat16 between products (h, the attention's result, the state between the layers of a net) is
// split into two bfloat16, high + low, 2^-17 of it lost, and multiplied twice: results stay as
// close to those of float products as before, and tiles are so fast that it costs little.
//
// A sample's result does not depend on its neighbours nor on the number of threads.

constexpr int64_t kTileSamples = 32, kBlock = 512;  // elements of a block
constexpr int64_t kChunk = 64;                      // columns of a product finished together

static inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows of bfloat16, and where not null what is added to them.
struct Bf16Rows {
  const uint16_t *high, *low;
  int64_t ld;
};

// rows * panels, of depth blocks of 32; where not null also more_rows * panels or
// rows * more_panels. `fetch` bytes are asked for in each step of a block's depth.
struct Bf16Product {
  const uint16_t *rows, *more_rows;
  int64_t ld;
  const uint16_t *panels, *more_panels;
  int64_t depth;
  Ahead* ahead;
  int64_t fetch;
};

// ---- products ----------------------------------------------------------------------------

// The compiler does not know that loads of tiles read memory.
LR_INLINE void memory_is_written() { __asm__ volatile("" ::: "memory"); }

struct TileConfig {
  uint8_t palette, start_row, zero[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

struct Tiles {
  template <int R>
  LR_INLINE void load_rows(const uint16_t* from, int64_t ld, long bytes) {
    _tile_loadd(4, from, bytes);
    if (R > 1) _tile_loadd(5, from + 16 * ld, bytes);
  }
  template <int C>
  LR_INLINE void load_panels(const uint16_t* from, int64_t depth) {
    _tile_loadd(6, from, 64);
    if (C > 1) _tile_loadd(7, from + depth * kBlock, 64);
  }
  template <int R, int C>
  LR_INLINE void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    if (C > 1) _tile_dpbf16ps(1, 4, 7);
    if (R > 1) _tile_dpbf16ps(2, 5, 6);
    if (R > 1 && C > 1) _tile_dpbf16ps(3, 5, 7);
  }
  // 16 * R samples by 16 * C columns.
  template <int R, int C>
  LR_INLINE void block(const Bf16Product& a, int64_t panel, float* out, int64_t ldo) {
    const long lda = a.ld * 2, ldc = ldo * 4;
    const int64_t depth = a.depth, at = panel * depth * kBlock;
    _tile_zero(0);
    if (C > 1) _tile_zero(1);
    if (R > 1) _tile_zero(2);
    if (R > 1 && C > 1) _tile_zero(3);
    for (int64_t k = 0; k < depth; ++k) {
      load_rows<R>(a.rows + k * 32, a.ld, lda);
      load_panels<C>(a.panels + at + k * kBlock, depth);
      multiply<R, C>();
      if (a.more_rows) {
        load_rows<R>(a.more_rows + k * 32, a.ld, lda);
        multiply<R, C>();
      } else if (a.more_panels) {
        load_panels<C>(a.more_panels + at + k * kBlock, depth);
        multiply<R, C>();
      }
      if (a.ahead) fetch_ahead(*a.ahead, a.fetch);
    }
    _tile_stored(0, out, ldc);
    if (C > 1) _tile_stored(1, out + 16, ldc);
    if (R > 1) _tile_stored(2, out + 16 * ldo, ldc);
    if (R > 1 && C > 1) _tile_stored(3, out + 16 * ldo + 16, ldc);
  }
  template <int R>
  static __attribute__((noinline)) void rows(const Bf16Product& a, int64_t first, int64_t count,
                                             float* out, int64_t ldo) {
    memory_is_written();
    int64_t c = 0;
    for (; c + 2 <= count; c += 2) block<R, 2>(a, first + c, out + 16 * c, ldo);
    if (c < count) block<R, 1>(a, first + c, out + 16 * c, ldo);
  }
  static void start() {
    // Constant, not on the stack: GCC believes that the instruction reads its first 8 bytes only.
    static constexpr TileConfig config = {
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
  }
  static void stop() { _tile_release(); }
};

struct Pairs {
  // M samples by 16 * N columns.
  template <int M, int N>
  LR_INLINE void block(const Bf16Product& a, int64_t m, int64_t panel, float* out, int64_t ldo) {
    const int64_t depth = a.depth, at = panel * depth * kBlock;
    const uint16_t *rows = a.rows + m * a.ld, *panels = a.panels + at;
    const uint16_t* more_rows = a.more_rows ? a.more_rows + m * a.ld : nullptr;
    const uint16_t* more_panels = a.more_panels ? a.more_panels + at : nullptr;
    __m512 acc[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = _mm512_setzero_ps();
    const auto add = [&](const uint16_t* x, const uint16_t* w) {
      __m512bh column[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) column[n] = (__m512bh)_mm512_loadu_si512(w + n * depth * kBlock);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        int32_t pair;
        memcpy(&pair, x + i * a.ld, 4);
        const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[i][n] = _mm512_dpbf16_ps(acc[i][n], row, column[n]);
      }
    };
    for (int64_t k = 0; k < depth * 16; ++k) {
      add(rows + 2 * k, panels + 32 * k);
      if (more_rows) add(more_rows + 2 * k, panels + 32 * k);
      if (more_panels) add(rows + 2 * k, more_panels + 32 * k);
      if (a.ahead && k % 16 == 0) fetch_ahead(*a.ahead, a.fetch / 4);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i)
      _mm512_storeu_ps(out + (m + i / N) * ldo + i % N * 16, acc[i / N][i % N]);
  }
  template <int R>
  static __attribute__((noinline)) void rows(const Bf16Product& a, int64_t first, int64_t count,
                                             float* out, int64_t ldo) {
    int64_t c = 0;
    for (; c + 4 <= count; c += 4)
      for (int m = 0; m < 16 * R; m += 4) block<4, 4>(a, m, first + c, out + 16 * c, ldo);
    for (; c + 2 <= count; c += 2)
      for (int m = 0; m < 16 * R; m += 8) block<8, 2>(a, m, first + c, out + 16 * c, ldo);
    if (c < count)
      for (int m = 0; m < 16 * R; m += 8) block<8, 1>(a, m, first + c, out + 16 * c, ldo);
  }
  static void start() {}
  static void stop() {}
};

// Panels [first, first + count) for 16 or 32 rows.
template <typename E>
LR_INLINE void bf16_product(const Bf16Product& a, int64_t rows, int64_t first, int64_t count,
                            float* out, int64_t ldo) {
  if (rows > 16)
    E::template rows<2>(a, first, count, out, ldo);
  else
    E::template rows<1>(a, first, count, out, ldo);
}

// ---- packing -----------------------------------------------------------------------------

// Columns [16 c, 16 c + 16): zeros beyond the last column and the last k.
static void bf16_pack(const Bf16Matrix& one, int64_t c) {
  const int64_t depth = (one.k + 31) / 32;
  const uint16_t* column[16];
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t at = c * 16 + i;
    column[i] = at < one.columns ? one.from[at / one.each] + at % one.each * one.k : nullptr;
  }
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t left = one.k - 32 * k;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
    f32 pairs[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      pairs[i].v = _mm512_castsi512_ps(
          _mm512_maskz_loadu_epi16(column[i] == nullptr ? 0 : mask,
                                   column[i] == nullptr ? one.from[0] : column[i] + 32 * k));
    transpose(pairs);
    uint16_t* to = one.panels + (c * depth + k) * kBlock;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + 32 * i, _mm512_castps_si512(pairs[i].v));
  }
}

// ---- elements ----------------------------------------------------------------------------

LR_INLINE f32 bf16_part(const uint16_t* p, int64_t left) {
  const bfloat_bits* from = (const bfloat_bits*)p;
  if (left >= 16) return load_element<f32>(from);
  const __m256i bits = _mm256_maskz_loadu_epi16(f32::mask(left), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

LR_INLINE void store_bf16(f32 x, uint16_t* p, int64_t left) {
  const __m256i bits = (__m256i)_mm512_cvtneps_pbh(x.v);
  if (left >= 16) return _mm256_storeu_si256((__m256i*)p, bits);
  _mm256_mask_storeu_epi16(p, f32::mask(left), bits);
}

// x = high + low within 2^-17; what is not finite is in high alone.
LR_INLINE void split(f32 x, uint16_t* high, uint16_t* low) {
  const __m256i top = (__m256i)_mm512_cvtneps_pbh(x.v);
  const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(top), 16));
  const __m512 rest = _mm512_sub_ps(x.v, wide);
  const __mmask16 odd = _mm512_fpclass_ps_mask(rest, 0x99);  // not a number, infinite
  _mm256_storeu_si256((__m256i*)high, top);
  _mm256_storeu_si256((__m256i*)low,
                      (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_mov_ps((__mmask16)~odd, rest)));
}

// The same of two rows, in pairs.
LR_INLINE void split_pairs(f32 a, f32 b, uint16_t* high, uint16_t* low) {
  const auto both = [](f32 x, f32 y) {
    const __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.v));
    const __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y.v));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
  };
  const auto rest = [](f32 x, __m512i wide) {
    const f32 left = x - f32{_mm512_castsi512_ps(wide)};
    const __mmask16 odd = _mm512_fpclass_ps_mask(left.v, 0x99);
    return f32{_mm512_maskz_mov_ps((__mmask16)~odd, left.v)};
  };
  const __m512i top = both(a, b);
  const __m512i first = _mm512_slli_epi32(top, 16);
  const __m512i second = _mm512_and_si512(top, _mm512_set1_epi32((int)0xffff0000));
  _mm512_storeu_si512(high, top);
  _mm512_storeu_si512(low, both(rest(a, first), rest(b, second)));
}

// to[i][j] = from[j][i] in blocks of 16 x 16; rows and columns are multiples of 16.
LR_INLINE void turn_blocks(const float* from, int64_t ld, int64_t rows, int64_t columns, float* to,
                           int64_t ldt) {
  for (int64_t j = 0; j < rows; j += 16)
    for (int64_t i = 0; i < columns; i += 16) {
      f32 block[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) block[k] = f32::load(from + (j + k) * ld + i);
      transpose(block);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) block[k].store(to + (i + k) * ldt + j);
    }
}

// n floats, then zeros up to `padded`, a multiple of 32.
LR_INLINE void split_row(const float* from, int64_t n, int64_t padded, uint16_t* high,
                         uint16_t* low) {
  for (int64_t j = 0; j < padded; j += 16)
    split(j < n ? load_part<f32>(from + j, n - j) : f32::set1(0), high + j, low + j);
}

// ---- layers ------------------------------------------------------------------------------

// Scratch of a task, in floats, for layers up to (d, r, projections).
struct Bf16Scratch {
  float *hidden, *rows, *mixed, *attention, *chunk, *turned, *state[2];
  uint16_t *padded, *split_x, *split_p, *panels;
  int64_t floats = 0;

  Bf16Scratch(float* at, int64_t d, int64_t r, int64_t token_dim, int64_t projections, bool net) {
    const int64_t s = kTileSamples, wide = up_to(d, 32), deep = up_to(r, 32);
    const auto take = [&](int64_t n) {
      float* const found = at ? at + floats : nullptr;
      floats += up_to(n, 16);
      return found;
    };
    hidden = take(s * up_to(projections * r, 16));
    rows = take(projections == 3 ? s * up_to(projections * r, 16) : 0);
    mixed = take(r);
    attention = take(projections == 3 ? attention_scratch(r, token_dim) + 64 : 0);
    chunk = take(s * kChunk);
    turned = take(s * kChunk);
    for (float*& one : state) one = take(net ? s * wide : 0);
    padded = (uint16_t*)take(s * wide / 2);
    split_x = (uint16_t*)take(net ? s * wide : 0);
    split_p = (uint16_t*)take(s * deep);
    const int64_t x_panels = net ? s * wide : s * wide / 2;
    panels = (uint16_t*)take(x_panels > s * deep ? x_panels : s * deep);
  }
};

static int64_t bf16_scratch(int64_t d, int64_t r, int64_t token_dim, int64_t projections,
                            bool net) {
  return Bf16Scratch(nullptr, d, r, token_dim, projections, net).floats;
}

// Rows of width d as an operand: as they lie, or copied where tiles would read beyond them.
LR_INLINE Bf16Rows operand_of(const uint16_t* x, int64_t rows, int64_t samples, int64_t d,
                              uint16_t* padded) {
  if (rows == samples && d % 32 == 0) return {x, nullptr, d};
  const int64_t wide = up_to(d, 32);
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
  attend_sample<f32>(l, h, s.mixed, s.attention);
  return s.mixed;
}

LR_INLINE Bf16Product by_weights(const Bf16Rows& x, const uint16_t* panels, int64_t depth) {
  return {x.high, x.low, x.ld, panels, nullptr, depth, nullptr, 0};
}
LR_INLINE Bf16Product of_weights(const uint16_t* w, int64_t k, const uint16_t* high,
                                 const uint16_t* low) {
  return {w, nullptr, k, high, low, k / 32, nullptr, 0};
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
                                 int64_t samples, const Bf16Scratch& s, const Bf16Kept& kept,
                                 Ahead* ahead, const Finish& finish) {
  const Layer<float>& l = layer.attention;
  const int64_t d = l.d, r = l.r, ldh = up_to(l.projections * r, 16), wide = up_to(r, 32);
  const int64_t depth_d = (d + 31) / 32, depth_r = wide / 32, panels = (d + 15) / 16;
  // Fetching ends with the layer's last block.
  const int64_t steps = (ldh / 16 + 1) / 2 * depth_d + (panels + 1) / 2 * depth_r;
  const int64_t fetch = ahead ? (ahead->bytes / steps + 64) / 64 * 64 : 0;
  Bf16Product in = by_weights(x, layer.in, depth_d);
  in.ahead = ahead;
  in.fetch = fetch;
  bf16_product<E>(in, samples, 0, ldh / 16, s.hidden, ldh);
  const Bf16Rows p = {s.split_p, s.split_p + samples * wide, wide};
  for (int64_t b = 0; b < rows; ++b) {
    const float *h = s.hidden + b * ldh, *mixed = mixed_of(l, h, s);
    if (kept.hidden)
      for (int64_t j = 0; j < kept.columns; j += 16)
        store_bf16(load_part<f32>(h + j, kept.columns - j), kept.hidden + b * kept.columns + j,
                   kept.columns - j);
    if (kept.mixed)
      for (int64_t j = 0; j < r; j += 16)
        store_bf16(load_part<f32>(mixed + j, r - j), kept.mixed + b * r + j, r - j);
    split_row(mixed, r, wide, s.split_p + b * wide, s.split_p + (samples + b) * wide);
  }
  for (int64_t b = rows; b < samples; ++b) {
    memset(s.split_p + b * wide, 0, (size_t)wide * 2);
    memset(s.split_p + (samples + b) * wide, 0, (size_t)wide * 2);
  }
  Bf16Product out = by_weights(p, layer.u, depth_r);
  out.ahead = ahead;
  out.fetch = fetch;
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
  for (int64_t c = 0; c < samples / 16; ++c) bf16_pack(one, c);
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
    turn_blocks(s.hidden, samples, m, samples, s.rows, m);
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
    weight_rows<E>(out, n, samples, s.turned);
    turn_blocks(s.turned, samples, n, samples, s.chunk, kChunk);
    for (int64_t b = 0; b < rows; ++b) finish(b, j, n, s.chunk + b * kChunk);
    out.rows += n * r;
  }
}

template <typename E, typename Finish>
LR_INLINE void bf16_layer(const Bf16Layer& layer, const Bf16Rows& x, int64_t rows, int64_t samples,
                          const Bf16Scratch& s, const Bf16Kept& kept, Ahead* ahead,
                          const Finish& finish) {
  if (layer.direct)
    bf16_layer_direct<E>(layer, x, rows, samples, s, finish);
  else
    bf16_layer_packed<E>(layer, x, rows, samples, s, kept, ahead, finish);
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

// Samples [begin, end) of the first `stop`, at most kTileSamples, through one layer.
template <typename E>
LR_INLINE void bf16_layer_range(const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                                int64_t begin, int64_t end, int64_t stop, uint16_t* y,
                                Bf16Kept kept, float* scratch) {
  const Layer<float>& l = layer.attention;
  const int64_t d = l.d, rows = end - begin, samples = up_to(rows, 16);
  const Bf16Scratch s(scratch, d, l.r, l.token_dim, l.projections, false);
  x0 += begin * d;
  x += begin * d;
  y += begin * d;
  if (kept.hidden) kept.hidden += begin * kept.columns;
  if (kept.mixed) kept.mixed += begin * l.r;
  const uint16_t* bias = layer.bias;
  Ahead ahead = next_rows(x0, x, (const uint16_t*)y, rows, kTileSamples, stop - begin, d);
  bf16_layer<E>(layer, operand_of(x, rows, samples, d, s.padded), rows, samples, s, kept, &ahead,
                [=](int64_t b, int64_t j, int64_t n, const float* t) {
                  finish_layer(t, bias ? bias + j : nullptr, x0 + b * d + j, x + b * d + j, n,
                               y + b * d + j);
                });
}

// Both stacks on samples [begin, end), at most kTileSamples.
template <typename E>
LR_INLINE void bf16_net_range(const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
                              int64_t rank, int64_t token_dim, uint16_t* y, float* scratch) {
  const int64_t d = net.d, wide = up_to(d, 32), rows = end - begin, samples = up_to(rows, 16);
  const Bf16Scratch s(scratch, d, rank, token_dim, 3, true);
  const Bf16Rows first = operand_of(x + begin * d, rows, samples, d, s.padded);
  const Bf16Rows later = {s.split_x, s.split_x + samples * wide, wide};
  for (int stack = 0; stack < 2; ++stack) {
    float* state = s.state[stack];
    const uint16_t* own = x + begin * d;
    uint16_t *high = s.split_x, *low = s.split_x + samples * wide;
    if (rows < samples || up_to(d, 16) < wide)  // what no layer writes
      memset(s.split_x, 0, (size_t)(2 * samples * wide) * 2);
    for (int64_t i = 0; i < net.count[stack]; ++i) {
      const bool last = i + 1 == net.count[stack];
      const uint16_t* bias = net.stack[stack][i].bias;
      bf16_layer<E>(net.stack[stack][i], i ? later : first, rows, samples, s, {nullptr, nullptr, 0},
                    nullptr, [=](int64_t b, int64_t j, int64_t n, const float* t) {
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

// Consecutive tiles of one task, `step` samples each.
template <typename E>
static void bf16_layer_task(const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                            int64_t begin, int64_t end, int64_t step, uint16_t* y,
                            const Bf16Kept& kept, float* scratch) {
  E::start();
  for (int64_t b = begin; b < end; b += step)
    bf16_layer_range<E>(layer, x0, x, b, b + step < end ? b + step : end, end, y, kept, scratch);
  E::stop();
}
template <typename E>
static void bf16_net_task(const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
                          int64_t step, int64_t rank, int64_t token_dim, uint16_t* y,
                          float* scratch) {
  E::start();
  for (int64_t b = begin; b < end; b += step)
    bf16_net_range<E>(net, x, b, b + step < end ? b + step : end, rank, token_dim, y, scratch);
  E::stop();
}
