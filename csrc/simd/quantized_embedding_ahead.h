// Rows of quantized tables before they are pooled, for one instruction set: ids are checked and
// rows prefetched ahead. See quantized_embedding.h.

#include "simd/quantized_embedding_codes.h"

// Two prefetches took 7.4 and 10.5 ns per row, and one 16 ids ahead 9.1 and 12.2 (1M rows of 16 and
// 30 codes, 20 ids per bag, one thread). For tables in L3, 6 ids ahead is too late: 7.1 ns, against
// 4.6 with both (100,000 rows of 32 codes, 20 ids per bag, two threads). Without prefetches 1,000
// rows of 16 codes took 2.4 ns instead of 3.9 (one id per bag) and of 32 codes 2.2 instead of 2.9
// (5 ids), but 10,000 rows of 64 codes 5.0 instead of 3.2 (50 ids).
constexpr int64_t kAhead = 32, kNear = 6, kFarBytes = 1 << 20, kNearBytes = 1 << 17;
// On a Xeon with AMX two prefetches cost 5 to 15 %, and one into L2 only 5 to 20 %. Every distance
// from 16 to 40 took the same time.
constexpr bool kOnePrefetch = LIRANK_ISA == 512;
// Prefetching the result took 25 ns instead of 35 (256 columns, 5 ids per bag, 16 MB) and 6.3
// instead of 7.7 (64 columns, 20 MB). Results of 4 MB lose 4 %, and one-id bags of far tables 5 %.
constexpr int64_t kLargeResult = 12 << 20, kAheadPooled = 2, kAheadCopied = 8;
constexpr int kVectors = 8;
// Rows of several passes are cut so evenly that a pass has more than half of kVectors.
template <int V>
constexpr bool kSeveralPasses = 2 * V > kVectors;

LR_INLINE bool has_large_result(const PoolCall& call) {
  return call.bags.bag_count * call.out_stride * 4 > kLargeResult;
}

// Asks for the lines that `vectors` vectors of a result will be written to, which may lie behind
// its end.
LR_INLINE void prefetch_result(const float* to, int64_t vectors) {
#pragma GCC unroll 8
  for (int64_t b = 0; b < vectors * f32::N * 4; b += 64) __builtin_prefetch((const char*)to + b, 1);
}

enum class Reach { cached, near, far };
LR_INLINE Reach reach_of(const PoolTable& t) {
  const int64_t bytes = t.rows * (t.code_stride + (t.pair_stride == 8 ? 8 : 0));
  return bytes > kFarBytes ? Reach::far : bytes > kNearBytes ? Reach::near : Reach::cached;
}

LR_INLINE bool prefetch_row(const PoolTable& t, int64_t row) {
  if (__builtin_expect((uint64_t)row >= (uint64_t)t.rows, 0)) return false;
  const uint8_t* codes = t.codes + row * t.code_stride;
  __builtin_prefetch(codes);
  for (int64_t b = 64; b < t.code_stride; b += 64) __builtin_prefetch(codes + b);
  __builtin_prefetch(t.pairs + row * t.pair_stride);
  return true;
}

// The ids that come next in a run of items, whatever table they belong to.
template <typename Index>
struct Ahead {
  const PoolCall& call;
  const Index* ids;
  int64_t limit, table;
  int64_t bad = -1;

  // Checks id `at` and prefetches its row.
  __attribute__((noinline)) bool step(int64_t at) {
    if (at >= limit) return true;
    while (at >= call.start((table + 1) * call.bags.bag_count)) ++table;
    if (prefetch_row(call.tables[table], (int64_t)ids[at])) return true;
    bad = at;
    return false;
  }
};

// Where the vectors of a row start. They follow one another, and the last one is moved back to end
// with the row, since a masked store costs as much as 20 plain ones on Zen 3. Columns that lie in
// two vectors get the same sums twice. The last vector stays where it is if it would start in the
// middle of a byte of 4-bit codes, or if the row is narrower than a vector.
struct Columns {
  int64_t vectors, tail, left;  // the last vector starts at `tail` and stores `left` lanes
};
template <int bits>
LR_INLINE Columns columns_of(int64_t dim) {
  const int64_t vectors = (dim + f32::N - 1) / f32::N, last = (vectors - 1) * f32::N;
  const bool overlaps = dim >= f32::N && (bits == 8 || dim % 2 == 0);
  return {vectors, overlaps ? dim - f32::N : last, overlaps ? f32::N : dim - last};
}

// One table's rows as a loop over bags sees them.
template <int bits, int V, bool apart, Reach reach, typename Index>
struct Rows {
  static constexpr int64_t kPassBytes = V * f32::N * bits / 8;
  const PoolTable& t;
  const Index* ids;
  Ahead<Index>& ahead;
  int64_t inside;    // ids from here on have a look-ahead that passes the table's end
  int64_t distance;  // from a row's codes to its pair, where pairs are not apart

  // Pairs apart are 8 bytes each; the others need no second multiplication.
  LR_METHOD const uint8_t* pair(const uint8_t* codes, int64_t row) const {
    return apart ? t.pairs + row * 8 : codes + distance;
  }
  LR_METHOD const uint8_t* codes(int64_t i) const {
    return t.codes + (int64_t)ids[i] * t.code_stride;
  }

  // Checks id i of a cached table, or id i + kAhead and prefetches what lies `bytes` from `from`
  // on in its row; false where it is bad. Without `first_pass` it was checked before, and its pair
  // is on its way.
  LR_METHOD bool look_ahead(int64_t i, int64_t from, int64_t bytes, bool first_pass) const {
    if constexpr (reach == Reach::cached) {
      if (first_pass && __builtin_expect((uint64_t)(int64_t)ids[i] >= (uint64_t)t.rows, 0)) {
        ahead.bad = i;
        return false;
      }
      return true;
    }
    if (__builtin_expect(i >= inside, 0)) return !first_pass || ahead.step(i + kAhead);
    const int64_t row = (int64_t)ids[i + kAhead];
    if (first_pass && __builtin_expect((uint64_t)row >= (uint64_t)t.rows, 0)) {
      ahead.bad = i + kAhead;
      return false;
    }
    const uint8_t* next = t.codes + row * t.code_stride;
    if constexpr (kOnePrefetch) {
      for (int64_t b = from; b < from + bytes; b += 64) __builtin_prefetch(next + b);
      if (first_pass) __builtin_prefetch(pair(next, row));
      return true;
    }
    const uint8_t* near = codes(i + kNear);
    if constexpr (reach == Reach::far) {
      for (int64_t b = from; b < from + bytes; b += 64) __builtin_prefetch(next + b, 0, 2);
      if (first_pass) __builtin_prefetch(pair(next, row), 0, 2);
    }
    for (int64_t b = from; b < from + bytes; b += 64) __builtin_prefetch(near + b);
    if (first_pass) __builtin_prefetch(pair(near, (int64_t)ids[i + kNear]));
    return true;
  }
};

// Where the bags of a run of items start, for kBlock items at a time, so that the kind of offsets
// is looked at once per block.
constexpr int64_t kBlock = 64;
static void read_starts(const PoolCall& call, int64_t item, int64_t n, int64_t* starts) {
  if (call.bags.ids_per_bag >= 0) {
    for (int64_t k = 0; k < n; ++k) starts[k] = (item + k) * call.bags.ids_per_bag;
    return;
  }
  const int64_t given = call.bags.offset_count - item, m = given < n ? (given > 0 ? given : 0) : n;
  if (call.bags.offsets_are_int64) {
    for (int64_t k = 0; k < m; ++k) starts[k] = ((const int64_t*)call.bags.offsets)[item + k];
  } else {
    for (int64_t k = 0; k < m; ++k) starts[k] = ((const int32_t*)call.bags.offsets)[item + k];
  }
  for (int64_t k = m; k < n; ++k) starts[k] = call.bags.id_count;
}
