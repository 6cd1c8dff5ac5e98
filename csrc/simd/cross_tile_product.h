// The matrix microkernel of the cross layers, for one instruction set.
//
// A tile holds W transposed samples, T[column][W], so the batch runs along the vector lanes. Every
// product of a layer (h = V x, t = U h) reads its weights in place, with one broadcast per scalar,
// and nothing is packed. Each sample has its own lane, and its sums run over k in order. Results
// therefore do not depend on the width of the tile, the batch or the number of threads. With many
// samples and in the backward, cross_rows.h exchanges the roles of samples and weights.
//
// The accumulators are 6 rows x 4 vectors (AVX-512), 6 x 2 (AVX2) or 4 x 2 (plain). In each step of
// k, 4 vectors of the tile from L2 (256 bytes) and 6 broadcasts feed 24 FMAs. The ceiling is the
// FMA rate. There are six weight rows, not twelve, because rows of 4096 bytes all share one L1 set
// of 8 ways.
//
// In addition to the products, a tile is transposed at the start and at the end. That costs about
// 0.35 cycles per element each way, and the two products of a layer r / 8 cycles per element.

#if LIRANK_ISA == 512
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

// sum_k a[m * row + k * step] * b[k * ldb + n * N]
template <typename T>
struct Product {
  const T* a;
  int64_t row, step, k;
  const T* b;
};

// out[m * ldo + lane] = (acc + bias[m]) * scale[m * ldo + lane] + add[m * ldo + lane]; each of
// bias, scale and add may be null.
template <typename T>
struct Epilogue {
  T* out;
  int64_t ldo;
  const T* bias;
  const T* scale;
  const T* add;
};

// acc[m][n] of rows m0 + m.
template <typename T, int M, int NV>
LR_INLINE void accumulate(const Product<T>& one, int64_t ldb, int64_t m0, Vec<T> (*acc)[NV]) {
  using V = Vec<T>;
  constexpr int groups = (M + 2) / 3;  // rows in threes: base, base + row, base + 2 row
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = V::set1(0);
  const int64_t row = one.row, step = one.step, k = one.k;
  const T* b = one.b;
  const T* a[groups];
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) a[g] = one.a + (m0 + 3 * g) * row;
  for (int64_t kk = 0; kk < k; ++kk) {
    V tile[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) tile[n] = V::load(b + n * V::N);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V w = V::set1(a[m / 3][(m % 3) * row]);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = fma(w, tile[n], acc[m][n]);
    }
    b += ldb;
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) a[g] += step;
  }
}

template <typename T, int M, int NV>
LR_INLINE void micro(const Product<T>& one, int64_t ldb, int64_t m0, const Epilogue<T>& e) {
  using V = Vec<T>;
  V acc[M][NV];
  accumulate<T, M, NV>(one, ldb, m0, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const int64_t at = (m0 + m) * e.ldo;
    const V bias = V::set1(e.bias ? e.bias[m0 + m] : T(0));
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) {
      const int64_t i = at + n * V::N;
      V t = acc[m][n] + bias;
      if (e.scale && e.add)
        t = fma(t, V::load(e.scale + i), V::load(e.add + i));
      else if (e.scale)
        t = t * V::load(e.scale + i);
      else if (e.add)
        t = t + V::load(e.add + i);
      t.store(e.out + i);
    }
  }
}

template <typename T, int MR, int NV>
static __attribute__((noinline)) void product_rows(const Product<T>& one, int64_t rows, int64_t ldb,
                                                   const Epilogue<T>& e) {
  int64_t m = 0;
  for (; m + MR <= rows; m += MR) micro<T, MR, NV>(one, ldb, m, e);
  for (; m + 4 <= rows; m += 4) micro<T, 4, NV>(one, ldb, m, e);
  for (; m + 2 <= rows; m += 2) micro<T, 2, NV>(one, ldb, m, e);
  if (m < rows) micro<T, 1, NV>(one, ldb, m, e);
}

// `rows` outputs for the first `vectors` vectors of lanes.
template <typename T>
LR_INLINE void product(const Product<T>& one, int64_t rows, int64_t ldb, int vectors,
                       const Epilogue<T>& e) {
#if LIRANK_ISA == 512
  if (vectors == 1) return product_rows<T, 12, 1>(one, rows, ldb, e);
  if (vectors == 2) return product_rows<T, 12, 2>(one, rows, ldb, e);
  if (vectors == 3) return product_rows<T, 8, 3>(one, rows, ldb, e);
  return product_rows<T, 6, 4>(one, rows, ldb, e);
#elif LIRANK_ISA == 256
  if (vectors == 1) return product_rows<T, 12, 1>(one, rows, ldb, e);
  return product_rows<T, 6, 2>(one, rows, ldb, e);
#else
  if (vectors == 1) return product_rows<T, 8, 1>(one, rows, ldb, e);
  return product_rows<T, 4, 2>(one, rows, ldb, e);
#endif
}

// ---- transposing tiles -----------------------------------------------------------------------

// tile[j * W + b] = x[b * ld + j] for b < rows; 0 for the other lanes of `vectors` vectors.
template <typename T>
LR_INLINE void transpose_in(const T* x, int64_t ld, int64_t rows, int64_t columns, T* tile,
                            int64_t W, int vectors) {
  using V = Vec<T>;
  constexpr int N = V::N;
  for (int64_t b0 = 0; b0 < vectors * N; b0 += N)
    for (int64_t j0 = 0; j0 < columns; j0 += N) {
      const int64_t left = columns - j0 < N ? columns - j0 : N;
      V block[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const T* from = x + (b0 + i) * ld + j0;
        block[i] = b0 + i >= rows ? V::set1(0) : left == N ? V::load(from) : V::load(from, left);
      }
      transpose(block);
      for (int64_t c = 0; c < left; ++c) block[c].store(tile + (j0 + c) * W + b0);
    }
}

// y[b * ld + j] = tile[j * W + b] for b < rows.
template <typename T>
LR_INLINE void transpose_out(const T* tile, int64_t W, int64_t rows, int64_t columns, T* y,
                             int64_t ld) {
  using V = Vec<T>;
  constexpr int N = V::N;
  for (int64_t b0 = 0; b0 < rows; b0 += N)
    for (int64_t j0 = 0; j0 < columns; j0 += N) {
      const int64_t left = columns - j0 < N ? columns - j0 : N;
      const int64_t high = rows - b0 < N ? rows - b0 : N;
      V block[N];
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c)
        block[c] = c < left ? V::load(tile + (j0 + c) * W + b0) : V::set1(0);
      transpose(block);
      for (int64_t i = 0; i < high; ++i) {
        if (left == N)
          block[i].store(y + (b0 + i) * ld + j0);
        else
          block[i].store(y + (b0 + i) * ld + j0, left);
      }
    }
}
