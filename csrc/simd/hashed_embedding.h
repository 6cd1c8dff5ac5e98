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

#include "simd/half_lanes.h"
#include "simd/hashing_lanes.h"
#include "simd/quantized_embedding_codes.h"

constexpr int64_t kBlock = 16, kSegment = 64, kDistance = 16, kRing = 128;
static_assert(kSegment + kDistance + kBlock <= kRing, "a segment and what runs ahead of it");

using ::lirank::hashed::Bags;
using ::lirank::hashed::Element;
using ::lirank::hashed::PackedTables;
using ::lirank::hashed::Runs;
using ::lirank::hashed::Source;
using ::lirank::hashed::Tables;
using ::lirank::murmur::Divider;

// ---- rows ------------------------------------------------------------------------------

struct RowRing {
  int64_t row[4][kRing];
};

#if LIRANK_ISA == 512
LR_INLINE u64 operator-(u64 a, u64 b) { return {_mm512_sub_epi64(a.v, b.v)}; }
LR_INLINE u64 low32(u64 a) { return {_mm512_and_si512(a.v, u64::set1(0xffffffffu).v)}; }
LR_INLINE u64 times32(u64 a, u64 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
LR_INLINE u64 shift(u64 a, int by) { return {_mm512_srl_epi64(a.v, _mm_cvtsi32_si128(by))}; }
#elif LIRANK_ISA == 256
LR_INLINE u64 operator-(u64 a, u64 b) { return {_mm256_sub_epi64(a.v, b.v)}; }
LR_INLINE u64 low32(u64 a) { return {_mm256_and_si256(a.v, u64::set1(0xffffffffu).v)}; }
LR_INLINE u64 times32(u64 a, u64 b) { return {_mm256_mul_epu32(a.v, b.v)}; }
LR_INLINE u64 shift(u64 a, int by) { return {_mm256_srl_epi64(a.v, _mm_cvtsi32_si128(by))}; }
#else
LR_INLINE u64 operator-(u64 a, u64 b) { return {a.v - b.v}; }
LR_INLINE u64 low32(u64 a) { return {a.v & 0xffffffffu}; }
LR_INLINE u64 times32(u64 a, u64 b) { return {a.v * b.v}; }  // both below 2^32
LR_INLINE u64 shift(u64 a, int by) { return {a.v >> by}; }
#endif

// murmur::divide on lanes that hold 32-bit numbers: one multiplication of 32 bits each.
LR_INLINE u64 divide_lanes(u64 x, const Divider& d) {
  if (d.power) return x;
  const u64 high = shift(times32(x, u64::set1(d.multiplier)), 32);
  return shift(shift(x - high, 1) + high, d.shift - 1);
}

// One half of each hash to its quotient and remainder row; murmur::rows_of on lanes.
LR_INLINE void split_lanes(u64 half, const ::lirank::murmur::RowRule& rule, int64_t* quotient,
                           int64_t* remainder) {
  if (!rule.all)
    half = half - times32(divide_lanes(half, rule.buckets), u64::set1(rule.buckets.divisor));
  const u64 q = divide_lanes(half, rule.remainders);
  q.store(quotient);
  (half - times32(q, u64::set1(rule.remainders.divisor))).store(remainder);
}

// The rows of ids [at, at + count), count <= kBlock, into kBlock places of each list.
LR_INLINE void hash_block(const Source& s, int64_t at, int64_t count, int64_t* const* lists) {
  int64_t part[kBlock] = {};
  const int64_t* ids = s.ids + at;
  if (count < kBlock) {
    memcpy(part, ids, (size_t)count * 8);
    ids = part;
  }
  const u64 start = u64::set1(s.seed ^ 8u);
  for (int j = 0; j < kBlock; j += u64::N) {
    const u64 given = u64::load(ids + j);
    const u64 hash = s.prehashed ? given : hash_lanes(given, start);
    split_lanes(low32(hash), s.rule, lists[0] + j, lists[1] + j);
    split_lanes(shift(hash, 32), s.rule, lists[2] + j, lists[3] + j);
  }
}

// Keeps the ring filled; `made` counts ids from the first of the range on.
struct Ahead {
  const Source& source;
  int64_t first, limit, made = 0;
  RowRing ring;

  LR_METHOD void fill(int64_t goal) {
    while (first + made < goal) {
      const int64_t slot = made & (kRing - 1), left = limit - first - made;
      int64_t* lists[4];
      for (int t = 0; t < 4; ++t) lists[t] = ring.row[t] + slot;
      const int64_t count = left < kBlock ? left : kBlock;
      hash_block(source, first + made, count, lists);
      made += kBlock;
    }
  }
  LR_METHOD int64_t slot(int64_t id) const { return (id - first) & (kRing - 1); }
};

LR_INLINE void prefetch_bytes(const uint8_t* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b);
  __builtin_prefetch(p + bytes - 1);
}

// ---- float tables ----------------------------------------------------------------------

template <typename E>
LR_INLINE void prefetch_rows(const Tables& t, const RowRing& ring, int64_t slot) {
  const int64_t bytes = t.dim * (int64_t)sizeof(E);
  prefetch_bytes((const uint8_t*)t.base[0] + ring.row[0][slot] * bytes, bytes);
  prefetch_bytes((const uint8_t*)t.base[2] + ring.row[2][slot] * bytes, bytes);
}

template <typename T>
struct Segment {
  int64_t slot, count;   // ids, by their place in the ring
  const T* weights;      // of the first id, or null
  T* out;                // (dim,) of the bag
  T divide;              // applied to the sum
  bool fresh, prefetch;  // first of its bag; prefetch while passing
};

// Columns [first, first + blocks * N), the last vector holding `last` of them.
template <typename T, typename E, int blocks, bool tail>
LR_INLINE void add_segment(const Tables& t, const RowRing& ring, const Segment<T>& s, int64_t first,
                           int64_t last) {
  using V = Vec<T>;
  const auto out_load = [&](int b) {
    T* p = s.out + first + b * V::N;
    return tail && b == blocks - 1 ? V::load(p, last) : V::load(p);
  };
  V total[blocks];
  for (int b = 0; b < blocks; ++b) total[b] = s.fresh ? V::set1(0) : out_load(b);
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t at = (s.slot + i) & (kRing - 1);
    if (s.prefetch) prefetch_rows<E>(t, ring, (at + kDistance) & (kRing - 1));
    const E* row[4];
    for (int k = 0; k < 4; ++k) row[k] = (const E*)t.base[k] + ring.row[k][at] * t.dim + first;
    const V w = V::set1(s.weights ? s.weights[i] : (T)1);
    for (int b = 0; b < blocks; ++b) {
      V x[4];
      for (int k = 0; k < 4; ++k)
        x[k] = tail && b == blocks - 1 ? load_element(row[k] + b * V::N, last)
                                       : load_element(row[k] + b * V::N);
      total[b] = fma((x[0] + x[1]) + (x[2] + x[3]), w, total[b]);
    }
  }
  const V d = V::set1(s.divide);
  for (int b = 0; b < blocks; ++b) {
    T* p = s.out + first + b * V::N;
    if (tail && b == blocks - 1)
      (total[b] * d).store(p, last);
    else
      (total[b] * d).store(p);
  }
}

#define LR_WIDTHS(call) \
  switch (blocks) {     \
    case 1:             \
      return call(1);   \
    case 2:             \
      return call(2);   \
    case 3:             \
      return call(3);   \
    case 4:             \
      return call(4);   \
    case 5:             \
      return call(5);   \
    case 6:             \
      return call(6);   \
    case 7:             \
      return call(7);   \
    default:            \
      return call(8);   \
  }

// `blocks` vectors of columns from `first` on; `last` is 0 where all are full.
template <typename T, typename E>
static void add_columns(const Tables& t, const RowRing& ring, const Segment<T>& s, int64_t first,
                        int64_t blocks, int64_t last) {
  using V = Vec<T>;
#define LR_FULL(n) add_segment<T, E, n, false>(t, ring, s, first, V::N)
#define LR_TAIL(n) add_segment<T, E, n, true>(t, ring, s, first, last)
  if (last == 0) LR_WIDTHS(LR_FULL);
  LR_WIDTHS(LR_TAIL);
#undef LR_FULL
#undef LR_TAIL
}

// All columns of a segment, up to 8 vectors at a time; the first pass prefetches.
template <typename T, typename Add>
LR_INLINE void all_columns(int64_t dim, Segment<T>& s, const Add& add) {
  using V = Vec<T>;
  for (int64_t first = 0; first < dim; first += 8 * V::N) {
    const int64_t left = dim - first;
    s.prefetch = first == 0;
    if (left >= 8 * V::N)
      add(s, first, 8, 0);
    else
      add(s, first, (left + V::N - 1) / V::N, left % V::N);
  }
}

// Bags [from, to).
template <typename T, typename Prefetch, typename Add>
LR_INLINE void pool_bags(const Source& source, const Bags& b, int64_t from, int64_t to, int64_t dim,
                         T* out, const Prefetch& prefetch, const Add& add) {
  Ahead ahead{source, b.start(from), b.start(to), 0, {}};
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
static void pool_float(const Tables& t, const Source& source, const Bags& b, int64_t from,
                       int64_t to, void* out) {
  pool_bags<T>(
      source, b, from, to, t.dim, (T*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_rows<E>(t, ring, slot); },
      [&](const RowRing& ring, Segment<T>& s, bool) {
        all_columns<T>(t.dim, s,
                       [&](const Segment<T>& part, int64_t first, int64_t blocks, int64_t last) {
                         add_columns<T, E>(t, ring, part, first, blocks, last);
                       });
      });
}

void pool_hashed(const Tables& t, const Source& s, const Bags& b, int64_t from, int64_t to,
                 void* out) {
  switch (t.element) {
    case Element::float64:
      return pool_float<double, double>(t, s, b, from, to, out);
    case Element::float16:
      return pool_float<float, half_bits>(t, s, b, from, to, out);
    case Element::bfloat16:
      return pool_float<float, bfloat_bits>(t, s, b, from, to, out);
    default:
      return pool_float<float, float>(t, s, b, from, to, out);
  }
}

// ---- packed tables ---------------------------------------------------------------------

LR_INLINE void prefetch_packed(const PackedTables& t, const RowRing& ring, int64_t slot) {
  for (int k = 0; k < 4; k += 2) {
    const int64_t row = ring.row[k][slot];
    prefetch_bytes(t.codes[k] + row * t.code_stride, t.code_stride);
    __builtin_prefetch(t.pairs[k] + row * t.pair_stride);
  }
}

// total = sum of w * scale * code; `mids` takes the sum of w * mid. The caller adds the two.
template <int bits, int blocks, bool tail>
LR_INLINE float add_packed(const PackedTables& t, const RowRing& ring, const Segment<float>& s,
                           int64_t first, int64_t last) {
  f32 total[blocks];
  for (int b = 0; b < blocks; ++b) {
    const float* p = s.out + first + b * f32::N;
    total[b] = s.fresh ? f32::set1(0) : tail && b == blocks - 1 ? f32::load(p, last) : f32::load(p);
  }
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
      for (int b = 0; b < blocks; ++b) {
        const int64_t column = first + b * f32::N;
        const int64_t left = tail && b == blocks - 1 ? last : f32::N;
        total[b] = fma(load_codes<bits>(codes, column, left), scale, total[b]);
      }
    }
  }
  for (int b = 0; b < blocks; ++b) {
    float* p = s.out + first + b * f32::N;
    if (tail && b == blocks - 1)
      total[b].store(p, last);
    else
      total[b].store(p);
  }
  return mids;
}

template <int bits>
static float add_packed_columns(const PackedTables& t, const RowRing& ring, const Segment<float>& s,
                                int64_t first, int64_t blocks, int64_t last) {
#define LR_FULL(n) add_packed<bits, n, false>(t, ring, s, first, f32::N)
#define LR_TAIL(n) add_packed<bits, n, true>(t, ring, s, first, last)
  if (last == 0) LR_WIDTHS(LR_FULL);
  LR_WIDTHS(LR_TAIL);
#undef LR_FULL
#undef LR_TAIL
}

void pool_packed(const PackedTables& t, const Source& source, const Bags& b, int64_t from,
                 int64_t to, void* out) {
  float mids = 0;
  pool_bags<float>(
      source, b, from, to, t.dim, (float*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_packed(t, ring, slot); },
      [&](const RowRing& ring, Segment<float>& s, bool ends) {
        float segment = 0;  // the same for every pass over the columns
        all_columns<float>(
            t.dim, s, [&](const Segment<float>& part, int64_t first, int64_t blocks, int64_t last) {
              segment = t.bits == 8 ? add_packed_columns<8>(t, ring, part, first, blocks, last)
                                    : add_packed_columns<4>(t, ring, part, first, blocks, last);
            });
        mids = s.fresh ? segment : mids + segment;
        if (ends)
          for (int64_t c = 0; c < t.dim; ++c) s.out[c] = (s.out[c] + mids) * s.divide;
      });
}

// ---- backward --------------------------------------------------------------------------

// Rows of ids [from, to) into four lists of the range's length; `from` is a multiple of kBlock.
void hash_rows(const Source& s, int64_t from, int64_t to, uint32_t* const* lists) {
  int64_t buffer[4][kBlock];
  int64_t* into[4] = {buffer[0], buffer[1], buffer[2], buffer[3]};
  for (int64_t i = from; i < to; i += kBlock) {
    const int64_t count = to - i < kBlock ? to - i : kBlock;
    hash_block(s, i, count, into);
    for (int t = 0; t < 4; ++t)
      for (int64_t j = 0; j < count; ++j) lists[t][i + j] = (uint32_t)buffer[t][j];
  }
}

// out (+)= sum of weight * grad[bag] over entries [from, to), columns in registers.
template <typename T, int blocks, bool tail>
LR_INLINE void sum_entries(const Runs& r, int64_t from, int64_t to, int64_t first, int64_t last,
                           T* out) {
  using V = Vec<T>;
  V total[blocks];
  for (int b = 0; b < blocks; ++b) total[b] = V::set1(0);
  for (int64_t e = from; e < to; ++e) {
    const uint32_t position = (uint32_t)r.entries[e];
    const T* g = (const T*)r.grad + (int64_t)r.bag_of[position] * r.dim + first;
    const V w = V::set1(r.weights ? ((const T*)r.weights)[position] : (T)1);
    for (int b = 0; b < blocks; ++b) {
      const V x = tail && b == blocks - 1 ? V::load(g + b * V::N, last) : V::load(g + b * V::N);
      total[b] = fma(x, w, total[b]);
    }
  }
  for (int b = 0; b < blocks; ++b) {
    T* p = out + first + b * V::N;
    if (tail && b == blocks - 1)
      total[b].store(p, last);
    else
      total[b].store(p);
  }
}

template <typename T>
static void sum_columns(const Runs& r, int64_t from, int64_t to, int64_t first, int64_t blocks,
                        int64_t last, T* out) {
  using V = Vec<T>;
#define LR_FULL(n) sum_entries<T, n, false>(r, from, to, first, V::N, out)
#define LR_TAIL(n) sum_entries<T, n, true>(r, from, to, first, last, out)
  if (last == 0) LR_WIDTHS(LR_FULL);
  LR_WIDTHS(LR_TAIL);
#undef LR_FULL
#undef LR_TAIL
}

// Entries [from, to) of a sorted list, whose first new run is number `run`. The part that
// continues a run of the entries before goes to `carry`; returns whether there is one.
template <typename T>
LR_INLINE bool sum_range(const Runs& r, int64_t from, int64_t to, int64_t run, void* carry) {
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
    Segment<T> all{};
    all_columns<T>(r.dim, all, [&](const Segment<T>&, int64_t first, int64_t blocks, int64_t last) {
      sum_columns<T>(r, begin, end, first, blocks, last, out);
    });
  }
  return carried;
}

bool sum_runs(bool wide, const Runs& r, int64_t from, int64_t to, int64_t run, void* carry) {
  return wide ? sum_range<double>(r, from, to, run, carry)
              : sum_range<float>(r, from, to, run, carry);
}

// <grad, sum of four rows>, for the gradient of an id's weight.
template <typename T, typename E>
LR_INLINE T dot_rows(const Tables& t, const RowRing& ring, int64_t slot, const T* grad) {
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
      const f32 code = t.bits == 8 ? load_codes<8>(codes, c, left) : load_codes<4>(codes, c, left);
      with_codes = fma(g, code, with_codes);
      alone = alone + g;
    }
    result += pair[0] * sum(with_codes) + pair[1] * sum(alone);
  }
  return result;
}

template <typename T, typename Prefetch, typename Dot>
LR_INLINE void dot_bags(const Source& source, const Bags& b, int64_t from, int64_t to, int64_t dim,
                        const T* grad, T* out, const Prefetch& prefetch, const Dot& dot) {
  Ahead ahead{source, b.start(from), b.start(to), 0, {}};
  for (int64_t bag = from; bag < to; ++bag)
    for (int64_t i = b.start(bag), end = b.start(bag + 1); i < end; ++i) {
      ahead.fill(i + kDistance < ahead.limit ? i + kDistance + 1 : ahead.limit);
      if (i + kDistance < ahead.limit) prefetch(ahead.ring, ahead.slot(i + kDistance));
      out[i] = dot(ahead.ring, ahead.slot(i), grad + bag * dim);
    }
}

template <typename T, typename E>
static void dot_float(const Tables& t, const Source& s, const Bags& b, int64_t from, int64_t to,
                      const void* grad, void* out) {
  dot_bags<T>(
      s, b, from, to, t.dim, (const T*)grad, (T*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_rows<E>(t, ring, slot); },
      [&](const RowRing& ring, int64_t slot, const T* g) {
        return dot_rows<T, E>(t, ring, slot, g);
      });
}

void dot_hashed(const Tables& t, const Source& s, const Bags& b, int64_t from, int64_t to,
                const void* grad, void* out) {
  switch (t.element) {
    case Element::float64:
      return dot_float<double, double>(t, s, b, from, to, grad, out);
    case Element::float16:
      return dot_float<float, half_bits>(t, s, b, from, to, grad, out);
    case Element::bfloat16:
      return dot_float<float, bfloat_bits>(t, s, b, from, to, grad, out);
    default:
      return dot_float<float, float>(t, s, b, from, to, grad, out);
  }
}

void dot_quantized(const PackedTables& t, const Source& s, const Bags& b, int64_t from, int64_t to,
                   const void* grad, void* out) {
  dot_bags<float>(
      s, b, from, to, t.dim, (const float*)grad, (float*)out,
      [&](const RowRing& ring, int64_t slot) { prefetch_packed(t, ring, slot); },
      [&](const RowRing& ring, int64_t slot, const float* g) {
        return dot_packed(t, ring, slot, g);
      });
}
#undef LR_WIDTHS
