// Pooling rows, for one instruction set.
//
// pooled = sum_i scale_i * code_i + sum_i mid_i. The cache lines touched limit a look-up in tables
// larger than the cache. Ids are read in one stream that runs across bags and tables. Each id is
// checked kAhead ids before it is used, so that a row is never touched before its id is known to be
// valid. The size of a table decides how its rows are prefetched:
// - Tables above kFarBytes are in L3 or memory. Their rows are prefetched into L2 kAhead ids ahead,
//   and into L1 kNear ids ahead.
// - Smaller tables get only the L1 prefetch, kNear ids ahead.
// - With AVX-512 one L1 prefetch kAhead ids ahead serves both (kOnePrefetch).
// - Tables up to kNearBytes get no prefetch, and their ids are checked when they are used. That
//   shortens the loop from 32 instructions per id to 22.
// Offsets are read kBlock at a time, so that their three kinds need not be distinguished in every
// bag. Writing to a line fetches it first, so results above kLargeResult are prefetched too.
//
// Up to kVectors vectors of columns stay in registers during a bag, and the compiler knows their
// number. Wider rows take several passes over a bag, all of one width. The last pass overlaps the
// one before it. Each pass prefetches the lines that the same pass will read later. A bag of one id
// copies its row, because it has nothing to add.
//
// Tried and dropped, on one thread of an AVX2 machine:
// - prefetching all lines of a row in the first pass: 76 ns per row, against 52 (1M rows of 256
//   codes, 20 ids per bag, 4 passes);
// - prefetching a whole bag before it is pooled, in two passes of 4 vectors: 8.4 ns per row,
//   against 3.7 (20,000 rows of 64 codes, the call included);
// - the position of the stream in a struct that every id writes to, and weights tested for every
//   id: 4.9 ns, against 3.7; a counter of the stream in addition to that of the bag: 3.1, against
//   2.8;
// - separate multiplications for the codes of a row and its pair: 1.8, against 1.6 (16 codes, in
//   cache);
// - masked stores of the last columns: 9.0, against 5.9 (30 codes, one id per bag);
// - bytes moved to the top of a 32-bit lane by vpshufb instead of vpmovsxbd: 3.7, against 2.8;
// - rows of 72 bytes in one piece, or 8 rows of codes and a line of their pairs, instead of
//   separate pairs: the same time within 5 % with huge pages.
// Not done: folding the 8 of 4-bit codes into mid. A constant row has scale 1 and would lose all
// digits below 8 * 2^-24.

#include "simd/quantized_embedding_ahead.h"

// Bags of one id each, `bags` of them, whose ids start at `first`. There is nothing to add up, so
// each bag copies its row. Returns false if an id is bad. Within the loop over bags of any length
// this took 4.6 ns per row instead of 4.0 (16 codes in cache) and 8.4 instead of 7.4 (64 codes).
template <int bits, int V, bool apart, bool weighted, Reach reach, typename Index>
static __attribute__((noinline)) bool copy_bags(const PoolCall& call,
                                                const Rows<bits, V, apart, reach, Index>& table,
                                                const Columns& places, int64_t first, int64_t bags,
                                                float* out) {
  const PoolTable t = table.t;
  const Rows<bits, V, apart, reach, Index> rows{t, table.ids, table.ahead, table.inside,
                                                table.distance};
  const Columns columns = places;
  const float* weights = (const float*)call.bags.weights;
  const int64_t stride = call.out_stride;
  const bool large = has_large_result(call);
  const auto copy = [&](int64_t i, int64_t bytes, bool one_pass) __attribute__((always_inline)) {
    if (!rows.look_ahead(i, 0, bytes, true)) return false;
    const uint8_t* codes = rows.codes(i);
    float scale, mid;
    read_pair(rows.pair(codes, (int64_t)rows.ids[i]), scale, mid);
    if constexpr (weighted) scale *= weights[i], mid *= weights[i];
    if (reach != Reach::far && large)
      prefetch_result(out + kAheadCopied * stride, one_pass ? V : columns.vectors);
    const f32 s = f32::set1(scale), m = f32::set1(mid);
    const auto value = [&](int64_t c) __attribute__((always_inline)) {
      return load_codes<bits>(codes, c) * s + m;
    };
    if (one_pass) {
#pragma GCC unroll 8
      for (int v = 0; v < V - 1; ++v) value(v * f32::N).store(out + v * f32::N);
    } else {
      for (int64_t c = 0; c < columns.tail; c += f32::N) value(c).store(out + c);
    }
    store_lanes(value(columns.tail), out + columns.tail, columns.left);
    return true;
  };
  if (!kSeveralPasses<V> || columns.vectors <= V) {
    for (int64_t i = first; i < first + bags; ++i, out += stride)
      if (__builtin_expect(!copy(i, rows.kPassBytes, true), 0)) return false;
  } else if constexpr (kSeveralPasses<V>) {
    for (int64_t i = first; i < first + bags; ++i, out += stride)
      if (__builtin_expect(!copy(i, t.code_stride, false), 0)) return false;
  }
  return true;
}

// Items [from, to) of one table, V vectors per pass. Returns false if an id is bad.
template <int bits, int V, bool apart, bool weighted, Reach reach, typename Index>
static bool pool_table(const PoolCall& call, const PoolTable& table, const Index* ids, int64_t from,
                       int64_t to, int64_t first_item, Ahead<Index>& ahead) {
  const PoolTable t = table;  // the compiler keeps a local copy in registers
  const float* weights = (const float*)call.bags.weights;
  const Columns columns = columns_of<bits>(t.dim);
  using Table = Rows<bits, V, apart, reach, Index>;
  const Table rows{t, ids, ahead, call.start(to) - kAhead, t.pairs - t.codes};
  const int64_t stride = call.out_stride;
  const bool mean = call.bags.mean, large = has_large_result(call);
  float* out = call.out + t.column + (from - first_item) * call.out_stride;

  // The vectors of columns from `first` on of one bag; only the first pass checks ids.
  const auto pool = [&](int64_t begin, int64_t end, int64_t first,
                        bool first_pass) __attribute__((always_inline)) {
    const int64_t full = first + (V - 1) * f32::N;
    const int64_t last = full < columns.tail ? full : columns.tail;
    f32 total[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) total[v] = f32::set1(0);
    float mids = 0;
    if (large) prefetch_result(out + kAheadPooled * stride + first, V);
    for (int64_t i = begin; i < end; ++i) {
      if (!rows.look_ahead(i, first * bits / 8, Table::kPassBytes, first_pass)) return false;
      const uint8_t* codes = rows.codes(i);
      float scale, mid;
      read_pair(rows.pair(codes, (int64_t)ids[i]), scale, mid);
      if constexpr (weighted) scale *= weights[i], mid *= weights[i];
      mids += mid;
      const f32 s = f32::set1(scale);
#pragma GCC unroll 8
      for (int v = 0; v < V - 1; ++v)
        total[v] = fma(load_codes<bits>(codes, first + v * f32::N), s, total[v]);
      total[V - 1] = fma(load_codes<bits>(codes, last), s, total[V - 1]);
    }
    const f32 m = f32::set1(mids);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) total[v] = total[v] + m;
    if (mean && end > begin) {
      const f32 d = f32::set1(1.0f / (float)(end - begin));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[v] = total[v] * d;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V - 1; ++v) total[v].store(out + first + v * f32::N);
    store_lanes(total[V - 1], out + last, last < columns.tail ? f32::N : columns.left);
    return true;
  };

  int64_t starts[kBlock + 1];
  for (int64_t item = from; item < to; item += kBlock) {
    const int64_t n = to - item < kBlock ? to - item : kBlock;
    read_starts(call, item, n + 1, starts);
    for (int64_t k = 0; k < n;) {
      const int64_t begin = starts[k], end = starts[k + 1];
      if (end - begin == 1 && k + 1 < n && starts[k + 2] == end + 1) {
        int64_t last = k + 2;
        while (last < n && starts[last + 1] == starts[last] + 1) ++last;
        // Copies, so that what the loop over other bags uses never has its address taken.
        const Table same{table, ids, ahead, rows.inside, rows.distance};
        const Columns places = columns;
        if (!copy_bags<bits, V, apart, weighted, reach>(call, same, places, begin, last - k, out))
          return false;
        out += (last - k) * stride;
        k = last;
        continue;
      }
      if (!pool(begin, end, 0, true)) return false;
      if constexpr (kSeveralPasses<V>) {
        for (int64_t done = V; done < columns.vectors; done += V) {
          const int64_t next = done + V <= columns.vectors ? done : columns.vectors - V;
          pool(begin, end, next * f32::N, false);
        }
      }
      ++k;
      out += stride;
    }
  }
  return true;
}

// Whether a table's ids are checked ahead, or each where it is used.
template <bool weighted>
LR_INLINE bool has_stream(const PoolTable& t) {
  return LIRANK_ISA == 0 || weighted || reach_of(t) != Reach::cached;
}

// Each kind of table has a loop of its own where that is measurably faster: without weights, and
// with vectors. The other loops distinguish no more than they must, because each is compiled for 16
// widths, two kinds of ids and three instruction sets.
template <int bits, int V, bool apart, bool weighted, typename Index>
LR_INLINE bool pool_reach(const PoolCall& call, const PoolTable& t, const Index* ids, int64_t from,
                          int64_t to, int64_t first_item, Ahead<Index>& ahead) {
#if LIRANK_ISA > 0
  if constexpr (!weighted) {
    if (!has_stream<weighted>(t))
      return pool_table<bits, V, apart, weighted, Reach::cached>(call, t, ids, from, to, first_item,
                                                                 ahead);
  }
  if constexpr (!kOnePrefetch) {
    if (reach_of(t) == Reach::far)
      return pool_table<bits, V, apart, weighted, Reach::far>(call, t, ids, from, to, first_item,
                                                              ahead);
  }
#endif
  return pool_table<bits, V, apart, weighted, Reach::near>(call, t, ids, from, to, first_item,
                                                           ahead);
}

// Codes whose pairs lie apart fill whole lines, and so a multiple of kLine vectors: with AVX-512
// and 8 bits 4, cut into passes of 4, 6, 7 or 8 of them, else 8 or 16, in passes of 8.
template <int bits, int V>
constexpr bool kMayLieApart = bits == 8 && f32::N > 8 ? V == 4 || V > 5 : V == kVectors;
template <int bits, int V, bool weighted, typename Index>
LR_INLINE bool pool_layout(const PoolCall& call, const PoolTable& t, const Index* ids, int64_t from,
                           int64_t to, int64_t first_item, Ahead<Index>& ahead) {
  if constexpr (kMayLieApart<bits, V>) {
    if (t.pair_stride == 8)
      return pool_reach<bits, V, true, weighted>(call, t, ids, from, to, first_item, ahead);
  }
  return pool_reach<bits, V, false, weighted>(call, t, ids, from, to, first_item, ahead);
}

template <int bits, bool weighted, typename Index>
static bool pool_any(const PoolCall& call, const PoolTable& t, const Index* ids, int64_t from,
                     int64_t to, int64_t first_item, Ahead<Index>& ahead) {
  const int64_t vectors = (t.dim + f32::N - 1) / f32::N;
  const int64_t passes = (vectors + kVectors - 1) / kVectors;
  switch ((vectors + passes - 1) / passes) {
#define LR_CASE(V) \
  case V:          \
    return pool_layout<bits, V, weighted>(call, t, ids, from, to, first_item, ahead)
    LR_CASE(1);
    LR_CASE(2);
    LR_CASE(3);
    LR_CASE(4);
    LR_CASE(5);
    LR_CASE(6);
    LR_CASE(7);
    LR_CASE(8);
#undef LR_CASE
  }
  return true;
}

// Items [from, to); returns the position of the first bad id, or -1.
template <int bits, bool weighted, typename Index>
static int64_t pool_items(const PoolCall& call, const Index* ids, int64_t from, int64_t to) {
  Ahead<Index> ahead{call, ids, call.start(to), from / call.bags.bag_count};
  bool running = false;  // the stream, which cached tables leave
  while (from < to) {
    const int64_t table = from / call.bags.bag_count, first_item = table * call.bags.bag_count;
    const bool streams = has_stream<weighted>(call.tables[table]);
    if (streams && !running) {
      const int64_t begin = call.start(from);
      ahead.table = table;
      for (int64_t i = 0; i < kAhead; ++i)
        if (!ahead.step(begin + i)) return ahead.bad;
    }
    running = streams;
    const int64_t stop =
        to < first_item + call.bags.bag_count ? to : first_item + call.bags.bag_count;
    if (!pool_any<bits, weighted>(call, call.tables[table], ids, from, stop, first_item, ahead))
      return ahead.bad;
    from = stop;
  }
  return -1;
}

template <int bits, typename Index>
LR_INLINE int64_t pool_ids(const PoolCall& call, const Index* ids, int64_t from, int64_t to) {
  return call.bags.weights ? pool_items<bits, true>(call, ids, from, to)
                           : pool_items<bits, false>(call, ids, from, to);
}

template <int bits>
LR_INLINE int64_t pool_bits(const PoolCall& call, int64_t from, int64_t to) {
  const void* ids = call.bags.ids;
  return call.bags.ids_are_int64 ? pool_ids<bits>(call, (const int64_t*)ids, from, to)
                                 : pool_ids<bits>(call, (const int32_t*)ids, from, to);
}

#if LIRANK_CODE_BITS == 8
int64_t pool_8bit(const PoolCall& call, int64_t from, int64_t to) {
  return pool_bits<8>(call, from, to);
}
#else
int64_t pool_4bit(const PoolCall& call, int64_t from, int64_t to) {
  return pool_bits<4>(call, from, to);
}
#endif
