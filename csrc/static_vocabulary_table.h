// The table of a static vocabulary: its layout in memory, and how a key's row is found.
//
// It is a minimal perfect hash like PTHash (Pibiri and Trani, SIGIR 2021) and PtrHash (Groot
// Koerkamp, SEA 2025). The 64-bit hash of a key selects a part of about 32 K keys, and a bucket in
// that part. The sizes of buckets are skewed. Each bucket has a pilot of one byte. The pilots are
// chosen so that the hashes of all keys of a part, mixed with the pilots of their buckets, give
// different slots. A part of k keys has k + spare slots. `remap` sends the slots from k on to the
// free slots below k. A tag of 0 to 32 bits at the row tells unknown keys from known ones.
// Pilots take 8 * 5 / 17 bits per key (3.4 keys per bucket) and remap takes 16 / 100. That is 2.52
// bits, plus the tag.
//
// Everything is little-endian: 8 numbers of 64 bits (Header), row_base[parts + 1] (int64, the rows
// before each part), pilots[parts * buckets] (uint8), remap[parts * spare] (uint16) and tags
// (tag_bits each, packed from the low bit up). Every section begins at a multiple of 8 bytes, and 8
// more bytes follow the last one.
#pragma once
#include <cstdint>
#include <cstring>

#include "hashing_murmur.h"

namespace lirank::vocabulary {

constexpr int64_t kMagic = 0x3130434f5652494c;  // "LIRVOC01"
constexpr int64_t kKeysPerPart = 1 << 15, kMostKeys = int64_t(1) << 40;
constexpr int kPilots = 256, kMostTagBits = 32;
constexpr uint64_t kPilot = 0x9e3779b97f4a7c15ull, kSlot = 0xd6e8feb86659fd93ull;
constexpr uint64_t kTag = 0xa0761d6478bd642full;

struct Header {
  int64_t magic, keys, parts, buckets, spare, tag_bits;
  uint64_t seed;
  int64_t string_seed;  // of hash_strings where the keys are strings; -1 where they are ids
};

struct Layout {
  int64_t row_base, pilots, remap, tags, size;
};

inline int64_t round_up(int64_t bytes) { return (bytes + 7) / 8 * 8; }

inline Layout layout(const Header& h) {
  Layout l;
  l.row_base = sizeof(Header);
  l.pilots = l.row_base + 8 * (h.parts + 1);
  l.remap = l.pilots + round_up(h.parts * h.buckets);
  l.tags = l.remap + round_up(2 * h.parts * h.spare);
  l.size = l.tags + round_up((h.keys * h.tag_bits + 7) / 8) + 8;
  return l;
}

// The header of a table. Sizes depend only on the number of keys.
inline Header header(int64_t keys, int64_t tag_bits, uint64_t seed, int64_t string_seed) {
  const int64_t parts = keys ? (keys + kKeysPerPart - 1) / kKeysPerPart : 1;
  const int64_t mean = (keys + parts - 1) / parts;
  return {kMagic,         keys,     parts, (5 * mean + 16) / 17 + 1,
          mean / 100 + 4, tag_bits, seed,  string_seed};
}

// One to one: different keys never share a hash.
LIRANK_HOST_DEVICE uint64_t hash_key(int64_t key, uint64_t seed) {
  return murmur::finalize((uint64_t)key ^ seed);
}

LIRANK_HOST_DEVICE uint64_t scale(uint64_t fraction, uint64_t n) { return fraction * n >> 32; }

LIRANK_HOST_DEVICE uint64_t part_of(uint64_t hash, uint64_t parts) {
  return scale(hash >> 32, parts);
}

// 255/256 x^2 (1 + x) / 2 + x / 256: the first buckets are the largest, and they are placed while
// most slots are free.
LIRANK_HOST_DEVICE uint64_t bucket_of(uint64_t hash, uint64_t buckets) {
  const uint64_t x = (uint32_t)hash, square = x * x >> 32;
  const uint64_t skewed = (square >> 1) * ((uint64_t(1) << 32) + x) >> 32;
  return scale(skewed - (skewed >> 8) + (x >> 8), buckets);
}

LIRANK_HOST_DEVICE uint64_t slot_of(uint64_t hash, uint64_t pilot, uint64_t slots) {
  return scale((hash ^ (pilot + 1) * kPilot) * kSlot >> 32, slots);
}

LIRANK_HOST_DEVICE uint64_t tag_of(uint64_t hash, int tag_bits) {
  return tag_bits ? hash * kTag >> (64 - tag_bits) : 0;
}

// A table to look up in. It may be at any address, so it is read with at().
struct Table {
  Header header;
  const uint8_t *row_base, *pilots, *remap, *tags;

  template <typename T>
  static T at(const uint8_t* p, int64_t i) {
    T value;
    memcpy(&value, p + i * (int64_t)sizeof(T), sizeof(T));
    return value;
  }
  int64_t base(int64_t part) const { return at<int64_t>(row_base, part); }
};

}  // namespace lirank::vocabulary
