// Code points of 1, 2 or 4 bytes (Python's str, NumPy's U arrays) to UTF-8.
#pragma once
#include <cstdint>

namespace lirank {

constexpr int64_t kNoUtf8 = -1;

// Writes at most 4 * n bytes and tells how many; kNoUtf8 at a lone surrogate or past U+10FFFF.
template <typename Unit>
inline int64_t to_utf8(const Unit* text, int64_t n, uint8_t* out) {
  uint8_t* at = out;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t c = text[i];
    if (c < 0x80) {
      *at++ = (uint8_t)c;
    } else if (c < 0x800) {
      *at++ = (uint8_t)(0xc0 | c >> 6);
      *at++ = (uint8_t)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
      if (c >> 11 == 0xd800 >> 11) return kNoUtf8;
      *at++ = (uint8_t)(0xe0 | c >> 12);
      *at++ = (uint8_t)(0x80 | (c >> 6 & 0x3f));
      *at++ = (uint8_t)(0x80 | (c & 0x3f));
    } else {
      if (c > 0x10ffff) return kNoUtf8;
      *at++ = (uint8_t)(0xf0 | c >> 18);
      *at++ = (uint8_t)(0x80 | (c >> 12 & 0x3f));
      *at++ = (uint8_t)(0x80 | (c >> 6 & 0x3f));
      *at++ = (uint8_t)(0x80 | (c & 0x3f));
    }
  }
  return at - out;
}

}  // namespace lirank
