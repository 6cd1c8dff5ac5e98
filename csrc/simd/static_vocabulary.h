// Look-ups in a static vocabulary for one instruction set.
//
// A look-up reads the pilot of the key's bucket and then the tag at its row. These are two cache
// misses, of which the second depends on the first. Keys are therefore processed in blocks of 64
// and in three steps: hash all keys and prefetch their pilots, compute rows from the pilots and
// prefetch their tags, and compare the tags. The arithmetic of a block runs on 64-bit lanes.
//
// Tried and dropped, because they were no faster: blocks of 32 to 256 keys, huge pages, and three
// blocks at once, each one step after the previous one.

#include "simd/hashing_lanes.h"

constexpr int kVocabularyBlock = 64;

// part_of, bucket_of and slot_of of static_vocabulary_table.h, on lanes.
LR_INLINE u64 part_lanes(u64 hash, u64 parts) {
  return right<32>(product32(right<32>(hash), parts));
}
LR_INLINE u64 bucket_lanes(u64 hash, u64 buckets) {
  const u64 half = right<33>(product32(hash, hash));
  const u64 skewed = half + right<32>(product32(half, hash));
  const u64 even = right<8>(product32(hash, u64::set1(1)));
  return right<32>(product32((skewed - right<8>(skewed)) + even, buckets));
}
LR_INLINE u64 slot_lanes(u64 hash, u64 pilot, u64 slots) {
  const u64 stirred = hash ^ times(pilot + u64::set1(1), ::lirank::vocabulary::kPilot);
  return right<32>(product32(right<32>(times(stirred, ::lirank::vocabulary::kSlot)), slots));
}

struct VocabularyBlock {
  int64_t hash[kVocabularyBlock], part[kVocabularyBlock], bucket[kVocabularyBlock];
  int64_t pilot[kVocabularyBlock], slots[kVocabularyBlock], slot[kVocabularyBlock];
};

// keys: a whole block; only the first n of it are looked up.
static void look_up_block(const ::lirank::vocabulary::Table& t, const int64_t* keys, int64_t n,
                          int64_t oov, int64_t* rows) {
  using ::lirank::vocabulary::Table;
  const auto& h = t.header;
  VocabularyBlock b;
  const u64 seed = u64::set1(h.seed), parts = u64::set1((uint64_t)h.parts);
  const u64 buckets = u64::set1((uint64_t)h.buckets);
  for (int64_t i = 0; i < kVocabularyBlock; i += u64::N) {
    const u64 hash = finalize(u64::load(keys + i) ^ seed), part = part_lanes(hash, parts);
    hash.store(b.hash + i);
    part.store(b.part + i);
    (product32(part, buckets) + bucket_lanes(hash, buckets)).store(b.bucket + i);
  }
  for (int64_t i = 0; i < kVocabularyBlock; ++i) __builtin_prefetch(t.pilots + b.bucket[i]);
  for (int64_t i = 0; i < kVocabularyBlock; ++i) {
    b.pilot[i] = t.pilots[b.bucket[i]];
    b.slots[i] = t.base(b.part[i] + 1) - t.base(b.part[i]) + h.spare;
  }
  for (int64_t i = 0; i < kVocabularyBlock; i += u64::N)
    slot_lanes(u64::load(b.hash + i), u64::load(b.pilot + i), u64::load(b.slots + i))
        .store(b.slot + i);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t beyond = b.slot[i] - (b.slots[i] - h.spare);
    const int64_t local =
        beyond < 0 ? b.slot[i] : Table::at<uint16_t>(t.remap, b.part[i] * h.spare + beyond);
    rows[i] = t.base(b.part[i]) + local;
    __builtin_prefetch(t.tags + rows[i] * h.tag_bits / 8);
  }
  const int tag_bits = (int)h.tag_bits;
  const uint64_t mask = (uint64_t(1) << tag_bits) - 1;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t bit = rows[i] * tag_bits;
    // A row past the last is one of an empty part, or of a damaged table.
    bool known = rows[i] < h.keys;
    if (known && tag_bits)
      known = (Table::at<uint64_t>(t.tags + bit / 8, 0) >> bit % 8 & mask) ==
              ::lirank::vocabulary::tag_of((uint64_t)b.hash[i], tag_bits);
    rows[i] = known ? rows[i] : oov;
  }
}

void look_up(const ::lirank::vocabulary::Table& t, const int64_t* keys, int64_t n, int64_t oov,
             int64_t* rows) {
  int64_t i = 0;
  for (; i + kVocabularyBlock <= n; i += kVocabularyBlock)
    look_up_block(t, keys + i, kVocabularyBlock, oov, rows + i);
  if (i == n) return;
  int64_t rest[kVocabularyBlock] = {};
  memcpy(rest, keys + i, (size_t)(n - i) * sizeof(int64_t));
  look_up_block(t, rest, n - i, oov, rows + i);
}
