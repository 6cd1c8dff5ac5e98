// The hash of an id and the row rule: one definition for CPU, CUDA and the tests on the host.
//
// hash_id is h1 of MurmurHash3_x64_128 (Appleby, public domain) over the id's 8 little-endian
// bytes. Each of its two unsigned halves b (low) and c (high) gives a quotient row and a remainder
// row: b' = b % buckets, b' / remainders, b' % remainders. All of it is integer arithmetic, because
// a float division gives the wrong quotient for 8.5 % of 32-bit ids.
#pragma once
#include "library/host_device.h"

#include <cstdint>

namespace lirank::murmur {

constexpr uint64_t kC1 = 0x87c37b91114253d5ull, kC2 = 0x4cf5ad432745937full;
constexpr uint64_t kF1 = 0xff51afd7ed558ccdull, kF2 = 0xc4ceb9fe1a85ec53ull;

LIRANK_HOST_DEVICE uint64_t rotate(uint64_t x, int r) { return x << r | x >> (64 - r); }

LIRANK_HOST_DEVICE uint64_t finalize(uint64_t k) {
  k = (k ^ k >> 33) * kF1;
  k = (k ^ k >> 33) * kF2;
  return k ^ k >> 33;
}

LIRANK_HOST_DEVICE uint64_t hash_id(uint64_t id, uint32_t seed) {
  uint64_t h1 = seed ^ rotate(id * kC1, 31) * kC2, h2 = seed;
  h1 ^= 8, h2 ^= 8;
  h1 += h2;
  h2 += h1;
  return finalize(h1) + finalize(h2);
}

// x / divisor for every 32-bit x and divisor >= 1, in one multiplication. It is exact: with
// shift = ceil(log2 divisor) and multiplier = ceil(2^(32 + shift) / divisor) the error stays below
// 2^-32 (Granlund and Montgomery 1994). The multiplier has 33 bits; an addition does its top bit.
struct Divider {
  uint32_t divisor, multiplier;  // multiplier without its 33rd bit
  int shift;
  bool is_one;  // the quotient is x itself
};

inline Divider divider(uint32_t divisor) {
  int shift = 0;
  while (shift < 32 && (uint64_t(1) << shift) < divisor) ++shift;
  const unsigned __int128 numerator = (unsigned __int128)1 << (32 + shift);
  const uint64_t multiplier = (uint64_t)((numerator + divisor - 1) / divisor);
  return {divisor, (uint32_t)multiplier, shift, divisor == 1};
}

LIRANK_HOST_DEVICE uint32_t divide(uint32_t x, const Divider& d) {
  if (d.is_one) return x;
  const uint32_t high = (uint32_t)((uint64_t)x * d.multiplier >> 32);
  return (((x - high) >> 1) + high) >> (d.shift - 1);
}

// How the four rows of a hash follow from it. all: there are 2^32 buckets, so b' = b.
struct RowRule {
  Divider buckets, remainders;
  bool all;
};

inline RowRule row_rule(uint64_t num_buckets, uint32_t num_remainders) {
  const bool all = num_buckets >> 32 != 0;
  return {divider(all ? 1u : (uint32_t)num_buckets), divider(num_remainders), all};
}

// How the rows of an id follow from it.
struct IdRule {
  RowRule rows;
  uint32_t seed;
  bool prehashed;  // ids are hashes
};

struct Rows {
  uint32_t quotient_b, remainder_b, quotient_c, remainder_c;
};

LIRANK_HOST_DEVICE uint32_t within(uint32_t half, const RowRule& r) {
  return r.all ? half : half - divide(half, r.buckets) * r.buckets.divisor;
}

LIRANK_HOST_DEVICE Rows rows_of(uint64_t hash, const RowRule& r) {
  const uint32_t b = within((uint32_t)hash, r), c = within((uint32_t)(hash >> 32), r);
  const uint32_t qb = divide(b, r.remainders), qc = divide(c, r.remainders);
  return {qb, b - qb * r.remainders.divisor, qc, c - qc * r.remainders.divisor};
}

}  // namespace lirank::murmur
