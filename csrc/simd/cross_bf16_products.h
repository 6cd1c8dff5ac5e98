// Cross layers in bfloat16 with products of bfloat16, AVX-512 and up.
//
// Every product is (rows x k) (k x columns), with up to 32 rows at a time. The columns are packed
// and run along the lanes. A panel holds 16 columns, with one vector of 16 pairs for each pair of
// k. A block is 16 such vectors, 1 KB. Two kinds of instructions multiply:
// - tiles (AMX): 2 x 2 tiles of 16 x 16 sums. An instruction does 16 x 16 x 32 products, which is
//   512 multiply-adds per cycle, compared with 32 for float FMAs;
// - pairs (vdpbf16ps): 4 x 4 vectors of sums. An instruction does 32 products. The rate is twice
//   that of float FMAs on Zen 4 and 5, and half of it on a Xeon with AMX.
// With many samples the weights are packed, once per call (0.45 cycles each). With few samples the
// samples are packed instead and weights are read in place, but then results must be transposed
// (kDirect in cross_bf16.cpp).
//
// Precision: products of bfloat16 inputs and weights are exact, and sums are float. Values between
// products (h, the attention's result, the state between the layers of a net) are not bfloat16.
// They are split into two bfloat16 numbers, high + low, which loses 2^-17, and are multiplied
// twice. Results are therefore as close to those of float products as before. Tiles are so fast
// that this costs little.
//
// Tried and dropped: prefetching the next tile's rows during the products, as cross_rows.h does
// (3 % faster at 2048 samples of d = 512, r = 64, but 5 % slower at 256).
//
// A sample's result does not depend on the other samples or on the number of threads.

constexpr int64_t kChunk = 64;  // columns of a product finished together

// Rows of bfloat16, and where not null what is added to them.
struct Bf16Rows {
  const uint16_t *high, *low;
  int64_t ld;
};

// rows * panels, of depth blocks of 32; where not null also more_rows * panels or
// rows * more_panels.
struct Bf16Product {
  const uint16_t *rows, *more_rows;
  int64_t ld;
  const uint16_t *panels, *more_panels;
  int64_t depth;
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
void pack(const Bf16Matrix& one, int64_t c) {
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
  if (left >= 16) return load_element(from);
  const __m256i bits = _mm256_maskz_loadu_epi16(f32::mask(left), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

LR_INLINE void store_bf16(f32 x, uint16_t* p, int64_t left) {
  const __m256i bits = (__m256i)_mm512_cvtneps_pbh(x.v);
  if (left >= 16) return _mm256_storeu_si256((__m256i*)p, bits);
  _mm256_mask_storeu_epi16(p, f32::mask(left), bits);
}

// 16 floats to bfloat16, each in the low half of 32 bits; and those as floats.
LR_INLINE __m512i bf16_bits(f32 x) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.v));
}
LR_INLINE f32 from_bits(__m512i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))}; }

// x - high, 0 where that is infinite or not a number: high says it alone.
LR_INLINE f32 rest_of(f32 x, f32 high) {
  const f32 rest = x - high;
  const __mmask16 odd = _mm512_fpclass_ps_mask(rest.v, 0x99);
  return {_mm512_maskz_mov_ps((__mmask16)~odd, rest.v)};
}

// x = high + low within 2^-17.
LR_INLINE void split(f32 x, uint16_t* high, uint16_t* low) {
  const __m512i top = bf16_bits(x);
  _mm256_storeu_si256((__m256i*)high, _mm512_cvtepi32_epi16(top));
  store_bf16(rest_of(x, from_bits(top)), low, 16);
}

// The same of two rows, in pairs.
LR_INLINE void split_pairs(f32 a, f32 b, uint16_t* high, uint16_t* low) {
  const __m512i first = bf16_bits(a), second = bf16_bits(b);
  const __m512i rest_a = bf16_bits(rest_of(a, from_bits(first)));
  const __m512i rest_b = bf16_bits(rest_of(b, from_bits(second)));
  _mm512_storeu_si512(high, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  _mm512_storeu_si512(low, _mm512_or_si512(rest_a, _mm512_slli_epi32(rest_b, 16)));
}

// n floats, then zeros up to `padded`, a multiple of 32.
LR_INLINE void split_row(const float* from, int64_t n, int64_t padded, uint16_t* high,
                         uint16_t* low) {
  for (int64_t j = 0; j < padded; j += 16)
    split(j < n ? load_part(from + j, n - j) : f32::set1(0), high + j, low + j);
}
