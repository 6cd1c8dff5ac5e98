// The machine's own ceilings, for the benchmarks: copy bandwidth, random-row gather rate, FMA
// and exp rates. No tensors: every function runs a bare loop on its own threads and memory.
#include "ceilings.h"
#include "simd/tables/ceilings_kernels.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lirank {
namespace {

using Clock = std::chrono::steady_clock;
using Buffer = std::unique_ptr<char, decltype(&std::free)>;

volatile double sink;  // keeps results alive

// The compiler may no longer know the value, nor that two calls with it do the same.
int64_t opaque(int64_t value) {
  __asm__ volatile("" : "+r"(value));
  return value;
}

// Huge pages where the system gives them: a ceiling should not include page walks that the
// package's own tables avoid.
Buffer allocate(int64_t bytes) {
  const int64_t page = bytes >= (4 << 20) ? (2 << 20) : 64;
  const int64_t rounded = (bytes + page - 1) / page * page;
  Buffer p((char*)std::aligned_alloc(page, rounded), &std::free);
  if (!p) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (page > 64) madvise(p.get(), rounded, MADV_HUGEPAGE);
#endif
  std::memset(p.get(), 1, rounded);
  return p;
}

// Calls work(thread) on every thread until the time is over; returns the calls a second of
// all threads together.
template <typename Work>
double rate(int threads, double seconds, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  auto run = [&](int thread) {
    work(thread);  // warm
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    const auto start = Clock::now();
    int64_t rounds = 0;
    double passed = 0;
    while (passed < seconds) {
      work(thread);
      ++rounds;
      passed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    rates[thread] = rounds / passed;
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& t : others) t.join();
  double total = 0;
  for (double r : rates) total += r;
  return total;
}

uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

}  // namespace
}  // namespace lirank

using namespace lirank;

double lirank_ceiling_copy(int64_t bytes, int threads, double seconds) {
  // read + written = bytes; each thread copies its share again and again
  const int64_t share = std::max<int64_t>(bytes / 2 / threads / 64 * 64, 64);
  std::vector<Buffer> from, to;
  for (int t = 0; t < threads; ++t) {
    from.push_back(allocate(share));
    to.push_back(allocate(share));
  }
  const int64_t again = std::max<int64_t>((1 << 20) / share, 1);  // the clock costs 30 ns
  const double cached = rate(threads, seconds / 2, [&](int t) {
    for (int64_t i = 0; i < again; ++i) std::memcpy(to[t].get(), from[t].get(), opaque(share));
  });
  const double streamed = rate(threads, seconds / 2, [&](int t) {
    for (int64_t i = 0; i < again; ++i)
      LIRANK_DISPATCH(stream_copy, to[t].get(), from[t].get(), opaque(share));
  });
  return std::max(cached, streamed) * again * share * 2;
}

double lirank_ceiling_gather(int64_t row_bytes, int64_t table_bytes, int threads, double seconds) {
  const int64_t rows = std::max<int64_t>(table_bytes / row_bytes, 1), n = 1 << 14;
  // Twice the rows, so that a table beyond the cache is not read from it when the list starts
  // again; drawn beforehand, for a draw costs as much as a row.
  const int64_t slices = std::clamp<int64_t>(2 * rows / n, 4, 512);
  const Buffer table = allocate(rows * row_bytes + 64);
  std::vector<std::vector<uint32_t>> drawn(threads, std::vector<uint32_t>(n * slices));
  for (int t = 0; t < threads; ++t)
    for (int64_t i = 0; i < n * slices; ++i) drawn[t][i] = (uint32_t)(mix(i * threads + t) % rows);
  std::vector<int64_t> turn(threads * 16, 0);  // on cache lines of their own
  double best = 0;
  const std::pair<int64_t, int64_t> distances[] = {{8, 0}, {16, 0}, {32, 0}, {32, 6}, {64, 6}};
  for (const auto& [ahead, near] : distances) {
    const double calls = rate(threads, seconds / 5, [&, ahead = ahead, near = near](int t) {
      const uint32_t* slice = drawn[t].data() + turn[t * 16]++ % slices * n;
      sink = (double)LIRANK_DISPATCH(gather_rows, table.get(), row_bytes, slice, n, ahead, near);
    });
    best = std::max(best, calls * n);
  }
  return best;
}

double lirank_ceiling_fma(int threads, double seconds) {
  const int64_t rounds = 100000;
  const double calls =
      rate(threads, seconds, [&](int) { sink = LIRANK_DISPATCH(fma_chain, opaque(rounds)); });
  return calls * rounds * 12 * 2 * LIRANK_DISPATCH(float_lanes);
}

double lirank_ceiling_exp(int threads, double seconds) {
  const int64_t rounds = 20000;
  const double calls =
      rate(threads, seconds, [&](int) { sink = LIRANK_DISPATCH(exp_chain, opaque(rounds)); });
  return calls * rounds * 4 * LIRANK_DISPATCH(float_lanes);
}
