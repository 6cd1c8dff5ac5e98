// Pooling rows, for one instruction set.
//
// pooled = sum_i scale_i * code_i + sum_i mid_i. A look-up beyond the cache is bound by cache
// lines touched, so ids are checked and their lines prefetched kAhead ids before they are used,
// in one stream that runs across bags and tables: a row is never touched before its id is known
// to be good. Up to kVectors vectors of columns stay in registers over a bag, with the number of
// vectors known to the compiler; wider rows take several passes over a bag that lies in the
// first-level cache by then, all of one width, the last overlapping the one before it.
//
// Tried and dropped, on one thread of an AVX2 machine, 20,000 rows of 64 int8 codes:
// - prefetching a whole bag before it is pooled, in two passes of 4 vectors: 8.4 ns a row against
//   3.7, the call included;
// - the place of the stream in a struct that every id writes to, weights tested for every id:
//   4.9 ns against 3.7, the call included;
// - kAhead = 32 and 48: 3.8 and 3.9 ns against 3.3, the loop alone; 8 gives 3.2 here but 11.7
//   against 9.5 where 4M rows of 32 codes lie beyond the cache (a noisy reading).
// Not done: folding the 8 of 4-bit codes into mid. A constant row has scale 1 and would lose all
// digits below 8 * 2^-24.

#include "quantized_embedding_kernels.h"

constexpr int64_t kAhead = 16;
constexpr int kVectors = 8;

LR_INLINE void read_pair(const PoolTable& t, int64_t row, float& scale, float& mid) {
  memcpy(&scale, t.pairs + row * t.pair_stride, 4);
  memcpy(&mid, t.pairs + row * t.pair_stride + 4, 4);
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
  bool bad = false;

  // Checks and prefetches id `at`; returns the next, or `at` again with `bad` set.
  __attribute__((noinline)) int64_t step(int64_t at) {
    if (at >= limit || bad) return at;
    while (at >= call.start((table + 1) * call.bags)) ++table;
    bad = !prefetch_row(call.tables[table], (int64_t)ids[at]);
    return at + !bad;
  }
};

// Adds the rows of one bag in `V` vectors of columns from `first` on, and stores them.
// `before` is called for every id; false ends the bag.
template <int bits, int V, bool weighted, typename Index, typename Before>
LR_INLINE bool pool_bag(const PoolTable& t, const Index* ids, const float* weights, int64_t begin,
                        int64_t end, float divide, int64_t first, float* out,
                        const Before& before) {
  f32 total[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) total[v] = f32::set1(0);
  float mids = 0;
  for (int64_t i = begin; i < end; ++i) {
    if (!before()) return false;
    const int64_t row = (int64_t)ids[i];
    float scale, mid;
    read_pair(t, row, scale, mid);
    if constexpr (weighted) scale *= weights[i], mid *= weights[i];
    mids += mid;
    const uint8_t* codes = t.codes + row * t.code_stride;
    const f32 s = f32::set1(scale);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      total[v] = fma(load_codes<bits>(codes, first + v * f32::N), s, total[v]);
  }
  const f32 m = f32::set1(mids), d = f32::set1(divide);
#pragma GCC unroll 8
  for (int v = 0; v < V - 1; ++v) ((total[v] + m) * d).store(out + first + v * f32::N);
  const int64_t last = first + (V - 1) * f32::N, left = t.dim - last;
  const f32 rest = (total[V - 1] + m) * d;
  if (left >= f32::N) {
    rest.store(out + last);
  } else {
    rest.store(out + last, left);
  }
  return true;
}

// Items [from, to) of one table, V vectors a pass. `at` is the id that `ahead` checks next;
// returns what it is afterwards.
template <int bits, int V, bool weighted, typename Index>
static int64_t pool_table(const PoolCall& call, const PoolTable& table, const Index* ids,
                          int64_t from, int64_t to, int64_t first_item, int64_t at,
                          Ahead<Index>& ahead) {
  const PoolTable t = table;  // the compiler keeps a local copy in registers
  const float* weights = call.weights;
  const bool mean = call.mean;
  const int64_t mine = call.start(to), limit = ahead.limit;
  const int64_t vectors = (t.dim + f32::N - 1) / f32::N;
  bool bad = false;
  const auto stream = [&]() __attribute__((always_inline)) {
    if (at < mine) {
      bad = !prefetch_row(t, (int64_t)ids[at]);
      at += !bad;
      return !bad;
    }
    if (at < limit) at = ahead.step(at);
    return !ahead.bad;
  };
  int64_t begin = call.start(from);
  float* out = call.out + t.column + (from - first_item) * call.out_stride;
  for (int64_t item = from; item < to; ++item, out += call.out_stride) {
    const int64_t end = call.start(item + 1);
    const float divide = mean && end > begin ? 1.0f / (float)(end - begin) : 1.0f;
    if (!pool_bag<bits, V, weighted>(t, ids, weights, begin, end, divide, 0, out, stream)) {
      ahead.bad = true;
      return at;
    }
    for (int64_t done = V; done < vectors; done += V) {
      const int64_t next = done + V <= vectors ? done : vectors - V;
      pool_bag<bits, V, weighted>(t, ids, weights, begin, end, divide, next * f32::N, out,
                                  [] { return true; });
    }
    begin = end;
  }
  return at;
}

template <int bits, bool weighted, typename Index>
static int64_t pool_any(const PoolCall& call, const PoolTable& t, const Index* ids, int64_t from,
                        int64_t to, int64_t first_item, int64_t at, Ahead<Index>& ahead) {
  const int64_t vectors = (t.dim + f32::N - 1) / f32::N;
  const int64_t passes = (vectors + kVectors - 1) / kVectors;
  switch ((vectors + passes - 1) / passes) {
#define LR_CASE(V) \
  case V:          \
    return pool_table<bits, V, weighted>(call, t, ids, from, to, first_item, at, ahead)
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
  return at;
}

// Items [from, to); returns the position of the first bad id, or -1.
template <int bits, bool weighted, typename Index>
static int64_t pool_items(const PoolCall& call, const Index* ids, int64_t from, int64_t to) {
  Ahead<Index> ahead{call, ids, call.start(to), from / call.bags};
  int64_t at = call.start(from);
  for (int64_t i = 0; i < kAhead; ++i) at = ahead.step(at);
  while (from < to && !ahead.bad) {
    const int64_t table = from / call.bags, first_item = table * call.bags;
    const int64_t stop = to < first_item + call.bags ? to : first_item + call.bags;
    at = pool_any<bits, weighted>(call, call.tables[table], ids, from, stop, first_item, at, ahead);
    from = stop;
  }
  return ahead.bad ? at : -1;
}

template <typename Index>
LR_INLINE int64_t pool_call(const PoolCall& call, const Index* ids, int64_t from, int64_t to) {
  if (call.bits == 8)
    return call.weights ? pool_items<8, true>(call, ids, from, to)
                        : pool_items<8, false>(call, ids, from, to);
  return call.weights ? pool_items<4, true>(call, ids, from, to)
                      : pool_items<4, false>(call, ids, from, to);
}

static int64_t pool(const PoolCall& call, const int64_t* ids, int64_t from, int64_t to) {
  return pool_call(call, ids, from, to);
}
static int64_t pool(const PoolCall& call, const int32_t* ids, int64_t from, int64_t to) {
  return pool_call(call, ids, from, to);
}

// Whether no offset is below the one before it, without a branch an offset.
template <typename Offset>
LR_INLINE bool all_rise(const Offset* offsets, int64_t n) {
  int64_t falls = 0;
  for (int64_t i = 1; i < n; ++i) falls |= offsets[i] < offsets[i - 1];
  return !falls;
}
static bool rise(const int64_t* offsets, int64_t n) { return all_rise(offsets, n); }
static bool rise(const int32_t* offsets, int64_t n) { return all_rise(offsets, n); }

// <grad, dequantized row>: the gradient of an id's weight.
static float row_dot(int bits, const PoolTable& t, int64_t row, const float* grad) {
  float scale, mid;
  read_pair(t, row, scale, mid);
  const uint8_t* codes = t.codes + row * t.code_stride;
  f32 with_codes = f32::set1(0), alone = f32::set1(0);
  for (int64_t c = 0; c < t.dim; c += f32::N) {
    const int64_t left = t.dim - c;
    const f32 g = f32::load(grad + c, left < f32::N ? left : f32::N);
    const f32 code = bits == 8 ? load_codes<8>(codes, c) : load_codes<4>(codes, c);
    with_codes = fma(g, code, with_codes);
    alone = alone + g;
  }
  return scale * sum(with_codes) + mid * sum(alone);
}
