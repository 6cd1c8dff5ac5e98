// Ids to rows, and rows to columns, for the kernels of the hashed embedding on one instruction set.

#include "simd/half_lanes.h"
#include "simd/hashing_lanes.h"

constexpr int64_t kBlock = 16, kSegment = 64, kDistance = 16, kRing = 128;
static_assert(kSegment + kDistance + kBlock <= kRing, "a segment and what runs ahead of it");

using ::lirank::hashed::FloatTables;
using ::lirank::hashed::PackedTables;
using ::lirank::murmur::Divider;
using ::lirank::murmur::IdRule;

// ---- rows ------------------------------------------------------------------------------

struct RowRing {
  int64_t row[4][kRing];
};

// murmur::divide on lanes that hold 32-bit numbers: one multiplication of 32 bits each.
LR_INLINE u64 divide_lanes(u64 x, const Divider& d) {
  if (d.is_one) return x;
  const u64 high = shift(product32(x, u64::set1(d.multiplier)), 32);
  return shift(shift(x - high, 1) + high, d.shift - 1);
}

// One half of each hash to its quotient and remainder row; murmur::rows_of on lanes.
LR_INLINE void split_lanes(u64 half, const ::lirank::murmur::RowRule& rule, int64_t* quotient,
                           int64_t* remainder) {
  if (!rule.all)
    half = half - product32(divide_lanes(half, rule.buckets), u64::set1(rule.buckets.divisor));
  const u64 q = divide_lanes(half, rule.remainders);
  q.store(quotient);
  (half - product32(q, u64::set1(rule.remainders.divisor))).store(remainder);
}

// The rows of `count` ids, at most kBlock, into kBlock places of each list.
LR_INLINE void hash_block(const IdRule& rule, const int64_t* ids, int64_t count,
                          int64_t* const* lists) {
  int64_t part[kBlock] = {};
  if (count < kBlock) {
    memcpy(part, ids, (size_t)count * 8);
    ids = part;
  }
  const u64 start = u64::set1(rule.seed ^ 8u);
  for (int j = 0; j < kBlock; j += u64::N) {
    const u64 given = u64::load(ids + j);
    const u64 hash = rule.prehashed ? given : hash_lanes(given, start);
    split_lanes(low32(hash), rule.rows, lists[0] + j, lists[1] + j);
    split_lanes(right<32>(hash), rule.rows, lists[2] + j, lists[3] + j);
  }
}

// Keeps the ring filled; `filled` counts ids from the first of the range on.
struct Ahead {
  const IdRule& rule;
  const int64_t* ids;
  int64_t first, limit, filled = 0;
  RowRing ring;

  LR_METHOD void fill(int64_t goal) {
    while (first + filled < goal) {
      const int64_t slot = filled & (kRing - 1), left = limit - first - filled;
      int64_t* lists[4];
      for (int t = 0; t < 4; ++t) lists[t] = ring.row[t] + slot;
      const int64_t count = left < kBlock ? left : kBlock;
      hash_block(rule, ids + first + filled, count, lists);
      filled += kBlock;
    }
  }
  LR_METHOD int64_t slot(int64_t id) const { return (id - first) & (kRing - 1); }
};

LR_INLINE void prefetch_bytes(const uint8_t* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b);
  __builtin_prefetch(p + bytes - 1);
}

template <typename E>
LR_INLINE void prefetch_rows(const FloatTables& t, const RowRing& ring, int64_t slot) {
  const int64_t bytes = t.dim * (int64_t)sizeof(E);
  prefetch_bytes((const uint8_t*)t.base[0] + ring.row[0][slot] * bytes, bytes);
  prefetch_bytes((const uint8_t*)t.base[2] + ring.row[2][slot] * bytes, bytes);
}

// The same for rows of more than `before` bytes and at most 64 more, so that the compiler knows the
// number of cache lines and needs no loop.
template <typename E, int64_t before>
LR_INLINE void prefetch_short_rows(const FloatTables& t, const RowRing& ring, int64_t slot) {
  const int64_t bytes = t.dim * (int64_t)sizeof(E);
  for (int k = 0; k < 4; k += 2) {
    const uint8_t* row = (const uint8_t*)t.base[k] + ring.row[k][slot] * bytes;
#pragma GCC unroll 8
    for (int64_t b = 0; b <= before; b += 64) __builtin_prefetch(row + b);
    __builtin_prefetch(row + bytes - 1);
  }
}

LR_INLINE void prefetch_packed(const PackedTables& t, const RowRing& ring, int64_t slot) {
  for (int k = 0; k < 4; k += 2) {
    const int64_t row = ring.row[k][slot];
    prefetch_bytes(t.codes[k] + row * t.code_stride, t.code_stride);
    __builtin_prefetch(t.pairs[k] + row * t.pair_stride);
  }
}

// ---- columns ---------------------------------------------------------------------------

// Vectors of columns that are summed in one pass: `blocks` of them, the first at column `first` and
// the last at `first + last`. If a row does not end with a vector, the last one is moved back to
// end with the row, and columns that lie in two vectors get the same sums twice. A row that is
// narrower than a vector has `lanes` columns.
struct Span {
  int64_t first, blocks, last, lanes;
};

template <int n>
struct Width {
  static constexpr int value = n;
};

// Calls call(Width<n>()), so that the number of vectors is known to the compiler.
template <typename Call>
LR_INLINE void with_width(int64_t blocks, const Call& call) {
  switch (blocks) {
    case 1:
      return call(Width<1>());
    case 2:
      return call(Width<2>());
    case 3:
      return call(Width<3>());
    case 4:
      return call(Width<4>());
    case 5:
      return call(Width<5>());
    case 6:
      return call(Width<6>());
    case 7:
      return call(Width<7>());
    default:
      return call(Width<8>());
  }
}

// Calls pass(span) for up to 8 vectors of N columns at a time.
template <int64_t N, typename Pass>
LR_INLINE void all_columns(int64_t dim, const Pass& pass) {
  for (int64_t first = 0; first < dim; first += 8 * N) {
    const int64_t left = dim - first < 8 * N ? dim - first : 8 * N, blocks = (left + N - 1) / N;
    pass(Span{first, blocks, left < N ? 0 : left - N, left < N ? left : N});
  }
}
