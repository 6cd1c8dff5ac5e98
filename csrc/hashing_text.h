// h1 of MurmurHash3_x64_128 over a sequence of bytes.
//
// Hashing 8 to 15 bytes, such as "member:1234", costs 8 multiplications. A mispredicted branch on
// the length would cost more, about 15 cycles. So keys of any length share one path: whole blocks
// of 16 bytes, and then one read of 16 bytes whose bytes beyond the end are masked. If fewer than
// 16 bytes are readable there (the last keys of a buffer), the rest is copied first. If the text
// follows a header in the same object, the last 16 bytes up to the end are read instead.
#pragma once
#include <cstdint>
#include <cstring>

#include "hashing_murmur.h"

namespace lirank::murmur {

struct State {
  uint64_t h1, h2;
};

LIRANK_HOST_DEVICE uint64_t mix1(uint64_t k) { return rotate(k * kC1, 31) * kC2; }
LIRANK_HOST_DEVICE uint64_t mix2(uint64_t k) { return rotate(k * kC2, 33) * kC1; }

inline __attribute__((always_inline)) uint64_t word(const uint8_t* p) {
  uint64_t w;
  memcpy(&w, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  w = __builtin_bswap64(w);
#endif
  return w;
}

inline __attribute__((always_inline)) void add_block(State& s, const uint8_t* p) {
  s.h1 = (rotate(s.h1 ^ mix1(word(p)), 27) + s.h2) * 5 + 0x52dce729;
  s.h2 = (rotate(s.h2 ^ mix2(word(p + 8)), 31) + s.h1) * 5 + 0x38495ab5;
}

// 16 bytes of ones, then 16 of zeros: read from 16 - n on, it keeps the first n bytes.
alignas(32) constexpr uint8_t kKeep[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                           255, 255, 255, 255, 255, 255, 255, 255};

inline __attribute__((always_inline)) uint64_t finish(State s, uint64_t k1, uint64_t k2,
                                                      uint64_t size) {
  s.h1 ^= mix1(k1) ^ size;
  s.h2 ^= mix2(k2) ^ size;
  s.h1 += s.h2;
  s.h2 += s.h1;
  return finalize(s.h1) + finalize(s.h2);
}

// `tail` holds 16 readable bytes of which the first `left` (0..15) belong to the key.
inline __attribute__((always_inline)) uint64_t finish(State s, const uint8_t* tail, int64_t left,
                                                      uint64_t size) {
  return finish(s, word(tail) & word(kKeep + 16 - left), word(tail + 8) & word(kKeep + 24 - left),
                size);
}

// `readable`: one past the last byte that may be read, at or after p + size.
inline __attribute__((always_inline)) uint64_t hash_bytes(const uint8_t* p, int64_t size,
                                                          const uint8_t* readable, uint32_t seed) {
  State s{seed, seed};
  const int64_t left = size & 15;
  const uint8_t* tail = p + (size - left);
  for (; p != tail; p += 16) add_block(s, p);
  if (__builtin_expect(readable - tail >= 16, 1)) return finish(s, tail, left, (uint64_t)size);
  uint8_t last[16] = {};
  if (left) memcpy(last, tail, (size_t)left);  // an empty key may have no address
  return finish(s, last, left, (uint64_t)size);
}

// For text with at least 16 readable bytes in front of it.
inline __attribute__((always_inline)) uint64_t hash_after_header(const uint8_t* p, int64_t size,
                                                                 uint32_t seed) {
  State s{seed, seed};
  const int64_t left = size & 15;
  const uint8_t* end = p + size;
  for (; end - p >= 16; p += 16) add_block(s, p);
  unsigned __int128 rest = (unsigned __int128)word(end - 8) << 64 | word(end - 16);
  rest = rest >> 8 * (15 - left) >> 8;  // in two steps: shifting by 128 is undefined
  return finish(s, (uint64_t)rest, (uint64_t)(rest >> 64), (uint64_t)size);
}

}  // namespace lirank::murmur
