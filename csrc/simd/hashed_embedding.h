// Hashing, gathering and pooling of hashed embeddings, for one instruction set.
//
// Ids are hashed kBlock at a time, kAhead ids before they are pooled. Their rows go into a small
// ring on the stack. The two quotient rows of an id may be anywhere in GBs of tables. They are
// prefetched kAhead ids before the pooling reaches them, so that requests are spread evenly. The
// remainder tables (1,000 rows) stay in the cache. The sums of a bag stay in registers for up to
// kSegment ids and 8 vectors of columns.
//
// An id costs six 64-bit multiplications and four divisions by a divisor that is fixed during a
// call, each of them a multiplication. They run on vectors. If the tables are larger than the
// cache, the gathers hide them.
//
// Tried and dropped:
// - splitting hashes one by one: 3.8 ns per id, which shows if the tables are in the cache;
// - a prefetch into L2 32 ids ahead and a second one into L1 6 ids ahead, as in look-ups in
//   quantized tables: no change for 500,000 float rows of 64, 8 % slower for packed rows.

#include "simd/hashed_embedding_rows.h"
#include "simd/quantized_embedding_codes.h"

// ---- float tables ----------------------------------------------------------------------

template <typename T>
struct Segment {
  int64_t slot, count;   // ids, by their place in the ring
  const T* weights;      // of the first id, or null
  T* out;                // (dim,) of the bag
  T divide;              // applied to the sum
  bool fresh, prefetch;  // first of its bag; prefetch while passing
};

// Adds a segment to the columns of a span. `narrow`: one vector, of fewer columns than it has
// lanes.
template <typename T, typename E, int blocks, bool narrow>
LR_INLINE void add_segment(const FloatTables& t, const RowRing& ring, const Segment<T>& s,
                           const Span& span) {
  using V = Vec<T>;
  const int64_t first = span.first, last = span.last, lanes = narrow ? span.lanes : V::N;
  const auto at = [&](int b) { return b == blocks - 1 ? last : b * V::N; };
  constexpr int64_t kBefore = (blocks - 1) * V::N * (int64_t)sizeof(E);  // the last vector
  T* out = s.out + first;
  V total[blocks];
  for (int b = 0; b < blocks; ++b)
    total[b] = s.fresh ? V::set1(0) : load_lanes<V>(out + at(b), lanes);
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t slot = (s.slot + i) & (kRing - 1);
    if (s.prefetch) {
      const int64_t next = (slot + kDistance) & (kRing - 1);
      if (blocks < 8 || t.dim <= 8 * V::N) {  // the span is the whole row
        prefetch_short_rows<E, kBefore>(t, ring, next);
      } else {
        prefetch_rows<E>(t, ring, next);
      }
    }
    const E* row[4];
    for (int k = 0; k < 4; ++k) row[k] = (const E*)t.base[k] + ring.row[k][slot] * t.dim + first;
    const V w = V::set1(s.weights ? s.weights[i] : (T)1);
    for (int b = 0; b < blocks; ++b) {
      V x[4];
      for (int k = 0; k < 4; ++k)
        x[k] = narrow ? load_element(row[k], lanes) : load_element(row[k] + at(b));
      total[b] = fma((x[0] + x[1]) + (x[2] + x[3]), w, total[b]);
    }
  }
  const V d = V::set1(s.divide);
  for (int b = 0; b < blocks; ++b) store_lanes(total[b] * d, out + at(b), lanes);
}

template <typename T, typename E>
static void add_columns(const FloatTables& t, const RowRing& ring, const Segment<T>& s,
                        const Span& span) {
  if (span.lanes < Vec<T>::N) return add_segment<T, E, 1, true>(t, ring, s, span);
  with_width(span.blocks, [&](auto width) __attribute__((always_inline)) {
    add_segment<T, E, decltype(width)::value, false>(t, ring, s, span);
  });
}

// Bags [from, to).
template <typename T, typename Prefetch, typename Add>
LR_INLINE void pool_bags(const IdRule& rule, const Bags& b, int64_t from, int64_t to, int64_t dim,
                         T* out, const Prefetch& prefetch, const Add& add) {
  Ahead ahead{rule, (const int64_t*)b.ids, b.start(from), b.start(to), 0, {}};
  ahead.fill(ahead.first + kDistance < ahead.limit ? ahead.first + kDistance : ahead.limit);
  for (int64_t i = ahead.first; i < ahead.limit && i < ahead.first + kDistance; ++i)
    prefetch(ahead.ring, ahead.slot(i));
  const T* weights = (const T*)b.weights;
  for (int64_t bag = from; bag < to; ++bag) {
    const int64_t begin = b.start(bag), end = b.start(bag + 1);
    T* row = out + bag * dim;
    if (begin == end) memset(row, 0, (size_t)dim * sizeof(T));
    for (int64_t i = begin; i < end; i += kSegment) {
      const int64_t stop = i + kSegment < end ? i + kSegment : end;
      const int64_t goal = stop + kDistance < ahead.limit ? stop + kDistance : ahead.limit;
      ahead.fill(goal);
      const T divide = b.mean && stop == end ? (T)1 / (T)(end - begin) : (T)1;
      Segment<T> s{ahead.slot(i), stop - i, weights ? weights + i : nullptr, row, divide,
                   i == begin,    true};
      add(ahead.ring, s, stop == end);
    }
  }
}

template <typename T, typename E>
static void pool_float(const FloatTables& t, const IdRule& rule, const Bags& b, int64_t from,
                       int64_t to, void* out) {
  pool_bags<T>(
      rule, b, from, to, t.dim, (T*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_rows<E>(t, ring, slot); },
      [&](const RowRing& ring, Segment<T>& s, bool) {
        all_columns<Vec<T>::N>(t.dim, [&](const Span& span) {
          s.prefetch = span.first == 0;
          add_columns<T, E>(t, ring, s, span);
        });
      });
}

void pool_hashed(const FloatTables& t, const IdRule& rule, const Bags& b, int64_t from, int64_t to,
                 void* out) {
  switch (t.dtype) {
    case DType::float64:
      return pool_float<double, double>(t, rule, b, from, to, out);
    case DType::float16:
      return pool_float<float, half_bits>(t, rule, b, from, to, out);
    case DType::bfloat16:
      return pool_float<float, bfloat_bits>(t, rule, b, from, to, out);
    default:
      return pool_float<float, float>(t, rule, b, from, to, out);
  }
}

// ---- packed tables ---------------------------------------------------------------------

// total = sum of w * scale * code; returns the sum of w * mid, which the caller adds. Codes are
// whole vectors (see load_codes), so that only the result has fewer columns.
template <int bits, int blocks>
LR_INLINE float add_packed(const PackedTables& t, const RowRing& ring, const Segment<float>& s,
                           int64_t first, int64_t lanes) {
  f32 total[blocks];
  float* out = s.out + first;
  for (int b = 0; b < blocks; ++b)
    total[b] = s.fresh ? f32::set1(0)
                       : load_lanes<f32>(out + b * f32::N, b == blocks - 1 ? lanes : f32::N);
  float mids = 0;
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t at = (s.slot + i) & (kRing - 1);
    if (s.prefetch) prefetch_packed(t, ring, (at + kDistance) & (kRing - 1));
    const float w = s.weights ? s.weights[i] : 1.0f;
    for (int k = 0; k < 4; ++k) {
      const int64_t row = ring.row[k][at];
      float pair[2];
      memcpy(pair, t.pairs[k] + row * t.pair_stride, sizeof pair);
      mids += w * pair[1];
      const f32 scale = f32::set1(w * pair[0]);
      const uint8_t* codes = t.codes[k] + row * t.code_stride;
      for (int b = 0; b < blocks; ++b)
        total[b] = fma(load_codes<bits>(codes, first + b * f32::N), scale, total[b]);
    }
  }
  for (int b = 0; b < blocks; ++b)
    store_lanes(total[b], out + b * f32::N, b == blocks - 1 ? lanes : f32::N);
  return mids;
}

template <int bits>
static float add_packed_columns(const PackedTables& t, const RowRing& ring, const Segment<float>& s,
                                const Span& span, int64_t lanes) {
  float mids = 0;
  with_width(span.blocks, [&](auto width) __attribute__((always_inline)) {
    mids = add_packed<bits, decltype(width)::value>(t, ring, s, span.first, lanes);
  });
  return mids;
}

void pool_packed(const PackedTables& t, const IdRule& rule, const Bags& b, int64_t from, int64_t to,
                 void* out) {
  float mids = 0;
  pool_bags<float>(
      rule, b, from, to, t.dim, (float*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_packed(t, ring, slot); },
      [&](const RowRing& ring, Segment<float>& s, bool ends) {
        float segment = 0;  // the same for every pass over the columns
        all_columns<f32::N>(t.dim, [&](const Span& span) {
          const int64_t left = t.dim - span.first - (span.blocks - 1) * f32::N;
          const int64_t lanes = left < f32::N ? left : f32::N;
          s.prefetch = span.first == 0;
          segment = t.bits == 8 ? add_packed_columns<8>(t, ring, s, span, lanes)
                                : add_packed_columns<4>(t, ring, s, span, lanes);
        });
        mids = s.fresh ? segment : mids + segment;
        if (ends)
          for (int64_t c = 0; c < t.dim; ++c) s.out[c] = (s.out[c] + mids) * s.divide;
      });
}
