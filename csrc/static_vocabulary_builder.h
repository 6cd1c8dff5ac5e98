// Builds the table of static_vocabulary_table.h, some parts at a time, on PyTorch's threads.
//
// Within a part, buckets are placed from the largest to the smallest. Each takes the first of the
// 256 pilots that sends all its keys to free slots. If there is none, the bucket takes the pilot
// that evicts the least, by the sum of squared bucket sizes. The evicted buckets are placed again,
// larger ones first. The result depends only on the set of keys, not on their order or on the
// number of threads. lirank_ext/nn/_vocabulary_builder.py does the same in NumPy, byte for byte.
#pragma once
#include <algorithm>
#include <atomic>
#include <queue>
#include <stdexcept>
#include <utility>
#include <vector>

#include "library/export.h"
#include "static_vocabulary_table.h"

namespace lirank::vocabulary {

// Builds one part. Its arrays are reused from part to part.
class Part {
 public:
  enum class Result { placed, duplicate, failed };

  // `hashes` is sorted in place. `slots` is the number of keys plus the spare ones.
  Result build(uint64_t* hashes, int64_t n, int64_t buckets, int64_t slots, uint8_t* pilots) {
    hashes_ = hashes, slots_ = (uint64_t)slots, pilots_ = pilots;
    sort_by_bucket(n, buckets);
    for (int64_t i = 1; i < n; ++i)
      if (hashes[i] == hashes[i - 1]) return duplicate_ = hashes[i], Result::duplicate;
    owner_.assign((size_t)slots, kFree);
    stamp_.assign((size_t)slots, 0);
    recent_.assign(kRecent, kFree);
    stamps_ = 0, evictions_ = 0;
    most_evictions_ = 20 * buckets + 1000;
    for (int32_t b : order_)
      if (!place(b)) return Result::failed;
    return Result::placed;
  }

  uint64_t duplicate() const { return duplicate_; }
  bool is_free(int64_t slot) const { return owner_[slot] == kFree; }

  template <typename Visit>
  void visit(int64_t buckets, const Visit& visit) const {
    for (int64_t b = 0; b < buckets; ++b)
      for (int64_t i = start_[b]; i < start_[b + 1]; ++i)
        visit(hashes_[i], slot_of(hashes_[i], pilots_[b], slots_));
  }

 private:
  static constexpr int32_t kFree = -1;
  static constexpr int kRecent = 16;

  int64_t size(int32_t b) const { return start_[b + 1] - start_[b]; }

  void sort_by_bucket(int64_t n, int64_t buckets) {
    start_.assign((size_t)buckets + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++start_[bucket_of(hashes_[i], (uint64_t)buckets) + 1];
    for (int64_t b = 0; b < buckets; ++b) start_[b + 1] += start_[b];
    sorted_.resize((size_t)n);
    next_.assign(start_.begin(), start_.end() - 1);
    for (int64_t i = 0; i < n; ++i)
      sorted_[next_[bucket_of(hashes_[i], (uint64_t)buckets)]++] = hashes_[i];
    for (int64_t b = 0; b < buckets; ++b)
      if (size((int32_t)b) > 1)
        std::sort(sorted_.begin() + start_[b], sorted_.begin() + start_[b + 1]);
    std::copy(sorted_.begin(), sorted_.end(), hashes_);
    order_.resize((size_t)buckets);
    for (int64_t b = 0; b < buckets; ++b) order_[b] = (int32_t)b;
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return size(a) > size(b); });
  }

  bool place(int32_t bucket) {
    using Waiting = std::pair<int64_t, int32_t>;  // the largest first, then the last
    std::priority_queue<Waiting> waiting;
    pilots_[bucket] = 0;
    if (size(bucket) == 0) return true;
    waiting.push({size(bucket), bucket});
    while (!waiting.empty()) {
      const int32_t b = waiting.top().second;
      waiting.pop();
      if (take_free(b)) continue;
      const int pilot = cheapest(b);
      if (pilot < 0 || ++evictions_ > most_evictions_) return false;
      for (int64_t i = start_[b]; i < start_[b + 1]; ++i) {
        const int32_t other = owner_[slot_of(hashes_[i], (uint64_t)pilot, slots_)];
        if (other == kFree) continue;
        mark(other, kFree);
        waiting.push({size(other), other});
      }
      pilots_[b] = (uint8_t)pilot;
      mark(b, b);
      recent_[evictions_ % kRecent] = b;
    }
    return true;
  }

  void mark(int32_t bucket, int32_t owner) {
    for (int64_t i = start_[bucket]; i < start_[bucket + 1]; ++i)
      owner_[slot_of(hashes_[i], pilots_[bucket], slots_)] = owner;
  }

  bool take_free(int32_t b) {
    const int64_t from = start_[b], to = start_[b + 1];
    for (int pilot = 0; pilot < kPilots; ++pilot) {
      int64_t i = from;
      for (; i < to; ++i) {
        int32_t& owner = owner_[slot_of(hashes_[i], (uint64_t)pilot, slots_)];
        if (owner != kFree) break;
        owner = b;  // at once, so that two keys of the bucket are seen to meet
      }
      if (i == to) return pilots_[b] = (uint8_t)pilot, true;
      while (i-- > from) owner_[slot_of(hashes_[i], (uint64_t)pilot, slots_)] = kFree;
    }
    return false;
  }

  // The pilot that evicts the least, or -1 if there is none. Buckets that were placed just before
  // are not evicted, because two large ones could evict each other forever.
  int cheapest(int32_t b) {
    int64_t least = INT64_MAX;
    int found = -1;
    for (int k = 0; k < kPilots; ++k) {
      const int pilot = (int)((evictions_ * 37 + k) % kPilots);
      const int64_t cost = cost_of(b, (uint64_t)pilot, least);
      if (cost < least) least = cost, found = pilot;
    }
    return found;
  }

  int64_t cost_of(int32_t b, uint64_t pilot, int64_t least) {
    ++stamps_;
    int64_t cost = 0;
    for (int64_t i = start_[b]; i < start_[b + 1]; ++i) {
      const uint64_t slot = slot_of(hashes_[i], pilot, slots_);
      if (stamp_[slot] == stamps_) return INT64_MAX;
      stamp_[slot] = stamps_;
      const int32_t other = owner_[slot];
      if (other == kFree) continue;
      cost += size(other) * size(other);
      if (cost >= least || std::find(recent_.begin(), recent_.end(), other) != recent_.end())
        return INT64_MAX;
    }
    return cost;
  }

  uint64_t* hashes_ = nullptr;
  uint64_t slots_ = 0, duplicate_ = 0;
  uint8_t* pilots_ = nullptr;
  int64_t stamps_ = 0, evictions_ = 0, most_evictions_ = 0;
  std::vector<int64_t> start_, next_, stamp_;
  std::vector<uint64_t> sorted_;
  std::vector<int32_t> order_, owner_, recent_;
};

class Builder {
 public:
  enum class State { building, done, duplicate, failed };

  // The table must have room for layout(h).size bytes. The keys are not read again later.
  Builder(const int64_t* keys, const Header& h, uint8_t* table)
      : header_(h), layout_(layout(h)), table_(table), hashes_((size_t)h.keys) {
    memset(table, 0, (size_t)layout_.size);
    memcpy(table, &header_, sizeof(Header));
    split_into_parts(keys);
  }

  State state() const { return state_; }
  int64_t parts() const { return header_.parts; }
  int64_t parts_done() const { return done_; }
  uint64_t duplicate() const { return duplicate_; }

  // Builds up to `count` more parts.
  State step(int64_t count) {
    if (state_ != State::building) return state_;
    const int64_t from = done_, to = std::min(done_ + count, header_.parts);
    std::vector<Part::Result> results((size_t)(to - from));
    std::vector<uint64_t> duplicates((size_t)(to - from));
    parallel(to - from, 1, [&](int64_t begin, int64_t end) {
      Part part;
      for (int64_t i = begin; i < end; ++i) {
        results[i] = build(part, from + i);
        duplicates[i] = part.duplicate();
      }
    });
    for (int64_t i = 0; i < to - from; ++i) {
      if (results[i] == Part::Result::placed) continue;
      const bool twice = results[i] == Part::Result::duplicate;
      if (twice) duplicate_ = duplicates[i];
      return state_ = twice ? State::duplicate : State::failed;
    }
    done_ = to;
    if (done_ == header_.parts) state_ = State::done;
    return state_;
  }

 private:
  template <typename Body>
  static void parallel(int64_t n, int64_t grain, const Body& body) {
    std::atomic<bool> out_of_memory{false};
    auto guarded = [&](int64_t begin, int64_t end) {
      try {
        body(begin, end);
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    };
    using Guarded = decltype(guarded);
    lirank_parallel_for(
        n, grain,
        [](const void* context, int64_t begin, int64_t end) {
          (*static_cast<const Guarded*>(context))(begin, end);
        },
        &guarded);
    if (out_of_memory) throw std::bad_alloc();
  }

  int64_t* row_base() { return reinterpret_cast<int64_t*>(table_ + layout_.row_base); }

  // A counting sort by part. Each chunk of keys has its own counters.
  void split_into_parts(const int64_t* keys) {
    const int64_t n = header_.keys, parts = header_.parts;
    const int64_t chunk = std::max<int64_t>(1 << 17, (n + 63) / 64),
                  chunks = (n + chunk - 1) / chunk;
    std::vector<int64_t> at((size_t)(chunks * parts), 0);
    auto part = [&](uint64_t hash) { return part_of(hash, (uint64_t)parts); };
    auto over = [&](int64_t c, auto&& visit) {
      for (int64_t i = c * chunk; i < std::min(n, (c + 1) * chunk); ++i)
        visit(hash_key(keys[i], header_.seed), at.data() + c * parts);
    };
    parallel(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        over(c, [&](uint64_t hash, int64_t* count) { ++count[part(hash)]; });
    });
    int64_t total = 0;
    for (int64_t p = 0; p < parts; ++p) {
      row_base()[p] = total;
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t count = at[c * parts + p];
        at[c * parts + p] = total;
        total += count;
      }
    }
    row_base()[parts] = total;
    parallel(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        over(c, [&](uint64_t hash, int64_t* next) { hashes_[next[part(hash)]++] = hash; });
    });
  }

  Part::Result build(Part& part, int64_t p) {
    const int64_t first = row_base()[p], n = row_base()[p + 1] - first;
    const int64_t buckets = header_.buckets, slots = n + header_.spare;
    if (slots > 1 << 16) return Part::Result::failed;  // remap has 16 bits
    uint8_t* pilots = table_ + layout_.pilots + p * buckets;
    const Part::Result result = part.build(hashes_.data() + first, n, buckets, slots, pilots);
    if (result != Part::Result::placed) return result;
    uint16_t* remap = reinterpret_cast<uint16_t*>(table_ + layout_.remap) + p * header_.spare;
    for (int64_t slot = n, free = 0; slot < slots; ++slot) {
      if (part.is_free(slot)) continue;
      while (!part.is_free(free)) ++free;
      remap[slot - n] = (uint16_t)free++;
    }
    const int tag_bits = (int)header_.tag_bits;
    if (tag_bits == 0) return result;
    part.visit(buckets, [&](uint64_t hash, uint64_t slot) {
      const int64_t row = first + (int64_t)(slot < (uint64_t)n ? slot : remap[slot - (uint64_t)n]);
      write_tag(row * tag_bits, tag_of(hash, tag_bits));
    });
    return result;
  }

  // Neighboring parts may share a byte, so it is written atomically.
  void write_tag(int64_t bit, uint64_t tag) {
    uint8_t* at = table_ + layout_.tags + bit / 8;
    for (uint64_t bits = tag << bit % 8; bits; bits >>= 8, ++at)
      __atomic_fetch_or(at, (uint8_t)bits, __ATOMIC_RELAXED);
  }

  Header header_;
  Layout layout_;
  uint8_t* table_;
  std::vector<uint64_t> hashes_;
  State state_ = State::building;
  int64_t done_ = 0;
  uint64_t duplicate_ = 0;
};

}  // namespace lirank::vocabulary
