// murmur_hash for one instruction set. It moves 16 bytes per id. With 64-bit multiplications
// (AVX-512) it is limited by copying, otherwise by the multiplications.

#include "simd/hashing_lanes.h"

void hash_ids(const int64_t* ids, int64_t n, uint32_t seed, int64_t* out) {
  const u64 start = u64::set1(seed ^ 8u);
  int64_t i = 0;
  for (; i + u64::N <= n; i += u64::N) hash_lanes(u64::load(ids + i), start).store(out + i);
  for (; i < n; ++i) out[i] = (int64_t)::lirank::murmur::hash_id((uint64_t)ids[i], seed);
}
