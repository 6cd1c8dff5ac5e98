// Hashes of many texts at once, whoever holds them; for python_interface.cpp and bindings.cpp.
//
// ASCII text is hashed in place. Other text is converted to UTF-8 in a buffer of the worker, one
// key at a time.
#pragma once
#include <algorithm>
#include <vector>

#include "library/export.h"
#include "hashing_text.h"
#include "hashing_utf8.h"
#include "library/lowest.h"

namespace lirank {

// A place for the UTF-8 of one key after another.
struct Scratch {
  std::vector<uint8_t> bytes;
  template <typename Unit>
  bool hash(const Unit* text, int64_t n, uint32_t seed, int64_t* out) {
    if ((int64_t)bytes.size() < 4 * n + 16) bytes.resize((size_t)(8 * n + 256));
    const int64_t size = to_utf8(text, n, bytes.data());
    if (size == kNoUtf8) return false;
    *out = (int64_t)murmur::hash_bytes(bytes.data(), size, bytes.data() + bytes.size(), seed);
    return true;
  }
};

template <typename Body>
void parallel_keys(int64_t n, const Body& body) {
  lirank_parallel_for(
      n, 4096,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

// Hashes n objects of an interpreter and returns the position of the first that has no UTF-8, or
// -1. Every worker has a Reader of its own: fetch(first, count, objects) finds the objects, and
// hash(object, seed, scratch, out) reads one.
template <typename Reader>
int64_t hash_objects(const Reader& reader, int64_t n, uint32_t seed, int64_t* out) {
  constexpr int64_t kBlock = 32;  // objects that are asked for before the first one is read
  Lowest bad;
  parallel_keys(n, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Reader own = reader;
    const void* objects[kBlock];
    for (int64_t from = begin; from < end; from += kBlock) {
      const int64_t count = std::min(kBlock, end - from);
      own.fetch(from, count, objects);
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(objects[i]);
      for (int64_t i = 0; i < count; ++i)
        if (!own.hash(objects[i], seed, scratch, out + from + i)) return bad.lower_to(from + i);
    }
  });
  return bad.get();
}

}  // namespace lirank
