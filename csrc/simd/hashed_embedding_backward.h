// Gradients of hashed tables and of the weights of ids, for one instruction set.

#include "simd/hashed_embedding_rows.h"
#include "simd/hashed_embedding_runs.h"
#include "simd/quantized_embedding_codes.h"

// Rows of ids [from, to) into four lists of the range's length; `from` is a multiple of kBlock.
void hash_rows(const IdRule& rule, const int64_t* ids, int64_t from, int64_t to,
               uint32_t* const* lists) {
  int64_t buffer[4][kBlock];
  int64_t* into[4] = {buffer[0], buffer[1], buffer[2], buffer[3]};
  for (int64_t i = from; i < to; i += kBlock) {
    const int64_t count = to - i < kBlock ? to - i : kBlock;
    hash_block(rule, ids + i, count, into);
    for (int t = 0; t < 4; ++t)
      for (int64_t j = 0; j < count; ++j) lists[t][i + j] = (uint32_t)buffer[t][j];
  }
}

// Entries [from, to) of a sorted list, whose first new run is number `run`. The part that
// continues a run of the entries before goes to `carry`; returns whether there is one.
template <typename T>
LR_INLINE bool sum_range(const GradientRuns& r, int64_t from, int64_t to, int64_t run,
                         void* carry) {
  bool carried = false;
  for (int64_t begin = from, end; begin < to; begin = end) {
    const uint64_t row = r.entries[begin] >> 32;
    for (end = begin + 1; end < to && r.entries[end] >> 32 == row;) ++end;
    const bool continues = begin == from && begin > 0 && r.entries[begin - 1] >> 32 == row;
    T* out = (T*)carry;
    if (continues) {
      carried = true;
    } else {
      out = (T*)r.out + (r.rows ? run : (int64_t)row) * r.dim;
      if (r.rows) r.rows[run] = (int64_t)row;
      ++run;
    }
    all_columns<Vec<T>::N>(r.dim,
                           [&](const Span& span) { sum_columns<T>(r, begin, end, span, out); });
  }
  return carried;
}

bool sum_runs(bool is_double, const GradientRuns& r, int64_t from, int64_t to, int64_t run,
              void* carry) {
  return is_double ? sum_range<double>(r, from, to, run, carry)
                   : sum_range<float>(r, from, to, run, carry);
}

// <grad, sum of four rows>, for the gradient of an id's weight.
template <typename T, typename E>
LR_INLINE T dot_rows(const FloatTables& t, const RowRing& ring, int64_t slot, const T* grad) {
  using V = Vec<T>;
  V total = V::set1(0);
  for (int64_t c = 0; c < t.dim; c += V::N) {
    const int64_t left = t.dim - c < V::N ? t.dim - c : V::N;
    V x[4];
    for (int k = 0; k < 4; ++k) {
      const E* p = (const E*)t.base[k] + ring.row[k][slot] * t.dim + c;
      x[k] = left == V::N ? load_element(p) : load_element(p, left);
    }
    total = fma((x[0] + x[1]) + (x[2] + x[3]), V::load(grad + c, left), total);
  }
  return sum(total);
}

LR_INLINE float dot_packed(const PackedTables& t, const RowRing& ring, int64_t slot,
                           const float* grad) {
  float result = 0;
  for (int k = 0; k < 4; ++k) {
    const int64_t row = ring.row[k][slot];
    const uint8_t* codes = t.codes[k] + row * t.code_stride;
    float pair[2];
    memcpy(pair, t.pairs[k] + row * t.pair_stride, sizeof pair);
    f32 with_codes = f32::set1(0), alone = f32::set1(0);
    for (int64_t c = 0; c < t.dim; c += f32::N) {
      const int64_t left = t.dim - c < f32::N ? t.dim - c : f32::N;
      const f32 g = f32::load(grad + c, left);
      const f32 code = t.bits == 8 ? load_codes<8>(codes, c) : load_codes<4>(codes, c);
      with_codes = fma(g, code, with_codes);
      alone = alone + g;
    }
    result += pair[0] * sum(with_codes) + pair[1] * sum(alone);
  }
  return result;
}

template <typename T, typename Prefetch, typename Dot>
LR_INLINE void dot_bags(const IdRule& rule, const Bags& b, int64_t from, int64_t to, int64_t dim,
                        const T* grad, T* out, const Prefetch& prefetch, const Dot& dot) {
  Ahead ahead{rule, (const int64_t*)b.ids, b.start(from), b.start(to), 0, {}};
  for (int64_t bag = from; bag < to; ++bag)
    for (int64_t i = b.start(bag), end = b.start(bag + 1); i < end; ++i) {
      ahead.fill(i + kDistance < ahead.limit ? i + kDistance + 1 : ahead.limit);
      if (i + kDistance < ahead.limit) prefetch(ahead.ring, ahead.slot(i + kDistance));
      out[i] = dot(ahead.ring, ahead.slot(i), grad + bag * dim);
    }
}

template <typename T, typename E>
static void dot_float(const FloatTables& t, const IdRule& rule, const Bags& b, int64_t from,
                      int64_t to, const void* grad, void* out) {
  dot_bags<T>(
      rule, b, from, to, t.dim, (const T*)grad, (T*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_rows<E>(t, ring, slot); },
      [&](const RowRing& ring, int64_t slot, const T* g) {
        return dot_rows<T, E>(t, ring, slot, g);
      });
}

void dot_hashed(const FloatTables& t, const IdRule& rule, const Bags& b, int64_t from, int64_t to,
                const void* grad, void* out) {
  switch (t.dtype) {
    case DType::float64:
      return dot_float<double, double>(t, rule, b, from, to, grad, out);
    case DType::float16:
      return dot_float<float, half_bits>(t, rule, b, from, to, grad, out);
    case DType::bfloat16:
      return dot_float<float, bfloat_bits>(t, rule, b, from, to, grad, out);
    default:
      return dot_float<float, float>(t, rule, b, from, to, grad, out);
  }
}

void dot_quantized(const PackedTables& t, const IdRule& rule, const Bags& b, int64_t from,
                   int64_t to, const void* grad, void* out) {
  dot_bags<float>(
      rule, b, from, to, t.dim, (const float*)grad, (float*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_packed(t, ring, slot); },
      [&](const RowRing& ring, int64_t slot, const float* g) {
        return dot_packed(t, ring, slot, g);
      });
}
