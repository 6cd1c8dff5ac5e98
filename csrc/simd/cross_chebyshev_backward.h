// Backward of attention at Chebyshev nodes (cross_chebyshev.h), for one instruction set.
//
// It is the adjoint of the forward. The gradient of a query's result becomes gradients of N and D,
// which are spread from the queries to the nodes, and from there to k and v. The gradient of q
// needs two more functions at the nodes: the sums N and D with an additional factor k_j.

// 2^(tk) and 2^(-tk) of a pair of nodes into e (2 rows), and the sums over keys of D, N and both
// with the key in front, still spread over the lanes: sums_of[(4 * side + function) * N].
LR_INLINE void node_rows(const Sample& s, const float* keyed, const float* both, float x, float* e,
                         f32* sums_of) {
  const f32 at = f32::set1(x * s.S);
  f32 total[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) total[i] = f32::set1(0);
  for (int64_t j = 0; j < s.padded; j += f32::N) {
    f32 a[2];
    exp2_pair(at * f32::load(s.key + j), a[0], a[1]);
    const f32 by[] = {f32::load(s.weight + j), f32::load(s.valued + j), f32::load(keyed + j),
                      f32::load(both + j)};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      a[i].store(e + i * s.padded + j);
#pragma GCC unroll 4
      for (int f = 0; f < 4; ++f) total[4 * i + f] = fma(a[i], by[f], total[4 * i + f]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sums_of[i * f32::N] = total[i];
}

// Gradients of Q vectors of queries, and what goes back into N and D.
template <int Q>
LR_INLINE void query_gradients(const Sample& s, const Halves* c, const float* g, const float* q,
                               int64_t left, float inverse, float* gq, float* to_N, float* to_D) {
  f32 x[Q], value[4][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) x[i] = place(s, q + i * f32::N, left - i * f32::N);
  evaluate<Q, 4>(c, s.P / 2, x, value);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const f32 share = f32::set1(1) / value[0][i], o = value[1][i] * share;
    const f32 grad = load_part(g + i * f32::N, left - i * f32::N);
    const f32 slope = (value[3][i] - o * value[2][i]) * share;
    store_part(grad * slope * f32::set1(inverse), gq + i * f32::N, left - i * f32::N);
    (grad * share).store(to_N + i * f32::N);
    (f32::set1(0) - grad * share * o).store(to_D + i * f32::N);
  }
}

// Adds sum_i w_i T_n(x_i), over the lanes, to partial[2 n] and partial[2 n + 1] for both weights.
template <int Q>
LR_INLINE void spread(const Sample& s, const float* q, int64_t left, const float* to_N,
                      const float* to_D, float* partial) {
  constexpr int N = f32::N;
  f32 x[Q], weight[2][Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    x[i] = place(s, q + i * N, left - i * N);
    weight[0][i] = f32::load(to_N + i * N);
    weight[1][i] = f32::load(to_D + i * N);
  }
  const auto add = [&](int64_t n, const f32* t) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int f = 0; f < 2; ++f) {
      f32 total = f32::load(partial + (2 * n + f) * N);
#pragma GCC unroll 4
      for (int i = 0; i < Q; ++i) total = fma(weight[f][i], t[i], total);
      total.store(partial + (2 * n + f) * N);
    }
  };
  Polynomials<Q> t;
  t.start(x);
  for (int64_t n = 0; n < s.P; n += 2) {
    if (n) t.next_even();
    add(n, t.even);
    if (n) t.next_odd();
    add(n + 1, t.odd);
  }
}

// gv_j = sum_p n_p e_pj and gk_j = sum_p (n_p v_j + d_p) s_p e_pj for Q vectors of keys; the keys'
// own weights at the end. w: n, n s and d s of row 2 p and 2 p + 1.
template <int Q>
LR_INLINE void key_gradients(const Sample& s, const float (*w)[kMostNodes], const float* e,
                             int64_t j, float* gk, float* gv) {
  f32 first[Q], second[Q], third[Q];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) first[i] = second[i] = third[i] = f32::set1(0);
  for (int64_t p = 0; p < s.P; ++p) {
    const f32 n = f32::set1(w[0][p]), ns = f32::set1(w[1][p]), ds = f32::set1(w[2][p]);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const f32 a = f32::load(e + p * s.padded + j + i * f32::N);
      first[i] = fma(a, n, first[i]);
      second[i] = fma(a, ns, second[i]);
      third[i] = fma(a, ds, third[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i, j += f32::N) {
    const f32 weight = f32::load(s.weight + j), valued = f32::load(s.valued + j);
    store_part(first[i] * weight, gv + j, s.r - j);
    store_part(fma(second[i], valued, third[i] * weight), gk + j, s.r - j);
  }
}

// False where the sample is to be summed exactly; what was written then is not valid.
static __attribute__((noinline)) bool attend_nodes_backward(const float* g, const float* q,
                                                            Range<float> queries, Range<float> keys,
                                                            const float* k, const float* v,
                                                            int64_t r, float scale, float inverse,
                                                            float* gq, float* gk, float* gv,
                                                            float* scratch) {
  constexpr int N = f32::N;
  const Sample s = sample_of(queries, keys, k, v, r, scale, scratch);
  if (!s.P) return false;
  float *keyed = scratch + 3 * s.padded, *both = keyed + s.padded, *to_N = both + s.padded;
  float *to_D = to_N + s.padded, *e = to_D + s.padded;
  alignas(64) Halves factor, at[4], folded[4], c[4];
  alignas(64) float partial[2 * kMostNodes * N], rows_of[3][kMostNodes];
  const ChebyshevTable& table = chebyshev_table(s.P);
  const int64_t half = s.P / 2;
  for (int64_t j = 0; j < s.padded; j += N) {
    (f32::load(s.key + j) * f32::load(s.weight + j)).store(keyed + j);
    (f32::load(s.key + j) * f32::load(s.valued + j)).store(both + j);
  }
  for (int64_t p = 0; p < half; p += N) {
    f32 rows[8 * N];
    for (int l = 0; l < N; ++l) {
      const int64_t pair = p + l < half ? p + l : half - 1;  // the last one again, unused
      node_rows(s, keyed, both, table.nodes[pair], e + 2 * pair * s.padded, rows + l);
    }
    f32 plus, minus;
    node_factors(s, f32::load(table.nodes + p), plus, minus);
    plus.store(factor[0] + p);
    minus.store(factor[1] + p);
    for (int f = 0; f < 4; ++f) {
      (sums(rows + f * N) * plus).store(at[f][0] + p);
      (sums(rows + (4 + f) * N) * minus).store(at[f][1] + p);
    }
  }
  if (!is_level(at[0], half)) return false;
  for (int f = 1; f < 4; ++f)
    if (!all_finite(at[f][0], half) || !all_finite(at[f][1], half)) return false;
  for (int f = 0; f < 4; ++f) fold(at[f], half, folded[f]);
  table_products<2>(folded, table.even, table.odd, half, c);
  table_products<2>(folded + 2, table.even, table.odd, half, c + 2);
  int64_t i = 0;
  for (; i + N < r; i += 2 * N)
    query_gradients<2>(s, c, g + i, q + i, r - i, inverse, gq + i, to_N + i, to_D + i);
  if (i < r) query_gradients<1>(s, c, g + i, q + i, r - i, inverse, gq + i, to_N + i, to_D + i);
  const int64_t lanes = (half + N - 1) / N * N;
  for (int64_t m = 0; m < 4 * lanes * N; m += N) f32::set1(0).store(partial + m);
  for (i = 0; i + 2 * N < r; i += 3 * N) spread<3>(s, q + i, r - i, to_N + i, to_D + i, partial);
  for (; i < r; i += N) spread<1>(s, q + i, r - i, to_N + i, to_D + i, partial);
  for (int64_t m = 0; m < half; m += N)
    for (int f = 0; f < 4; ++f) {  // even of N, even of D, odd of N, odd of D
      f32 rows[N];
      for (int l = 0; l < N; ++l) rows[l] = f32::load(partial + (4 * (m + l) + f) * N);
      sums(rows).store(at[f % 2][f / 2] + m);
    }
  table_products<2>(at, table.even_transposed, table.odd_transposed, half, folded);
  for (int f = 0; f < 2; ++f) fold(folded[f], half, c[f]);
  for (int64_t p = 0; p < half; ++p)
    for (int side = 0; side < 2; ++side) {
      const float x = side ? -table.nodes[p] : table.nodes[p];
      const float score = (x * s.half + s.middle) * inverse;
      const float n = c[0][side][p] * factor[side][p], d = c[1][side][p] * factor[side][p];
      rows_of[0][2 * p + side] = n;
      rows_of[1][2 * p + side] = n * score;
      rows_of[2][2 * p + side] = d * score;
    }
  if (!all_finite(rows_of[1], s.P) || !all_finite(rows_of[2], s.P)) return false;
  for (i = 0; i + 2 * N < s.padded; i += 3 * N) key_gradients<3>(s, rows_of, e, i, gk, gv);
  for (; i < s.padded; i += N) key_gradients<1>(s, rows_of, e, i, gk, gv);
  return true;
}
