// The packed layout of row-wise quantized tables: one definition for CPU, CUDA and hashing.
//
// A row is `code_bytes` of codes and a pair (scale, mid) of float32. code_bytes is the size of the
// codes rounded up to 8. If it is a multiple of 64, the codes of all rows come first, with each row
// on whole cache lines, and then all pairs. A look-up then touches code_bytes / 64 + 1 lines.
// Otherwise the pair follows the codes of its row. A row of 49 to 63 bytes is padded to 64, so that
// it touches one line instead of 1.9 on average. 4-bit codes are stored plus 8, two per byte, with
// the even column in the low half.
#pragma once
#include "library/host_device.h"

#include <cstdint>
#include <cstring>

namespace lirank::rowwise {

struct Pair {
  float scale, mid;
};

struct Layout {
  int64_t code_bytes;   // codes of one row, rounded up to 8
  int64_t row_bytes;    // share of one row in the table: shape (N, row_bytes)
  int64_t code_stride;  // from one row's codes to the next
  int64_t pair_stride;  // from one row's pair to the next
  bool apart;           // pairs behind all codes
};

LIRANK_HOST_DEVICE Layout layout(int64_t dim, int bits) {
  const int64_t bytes = bits == 8 ? dim : (dim + 1) / 2;
  const int64_t codes = (bytes + 7) / 8 * 8;
  const bool apart = codes % 64 == 0;
  int64_t row = codes + 8;
  if (!apart && row > 48 && row < 64) row = 64;
  return {codes, row, apart ? codes : row, apart ? 8 : row, apart};
}

// Position of the pair of row 0. The pair of row i is i * pair_stride further on.
LIRANK_HOST_DEVICE int64_t first_pair(const Layout& l, int64_t rows) {
  return l.apart ? rows * l.code_bytes : l.code_bytes;
}

LIRANK_HOST_DEVICE int unpack4(uint8_t byte, int64_t column) {
  return (int)(column & 1 ? byte >> 4 : byte & 15) - 8;
}

// The value of a code: one multiplication and one addition, each of them rounded.
LIRANK_HOST_DEVICE float dequantize(int code, float scale, float mid) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(mid, __fmul_rn((float)code, scale));
#else
  return mid + (float)code * scale;
#endif
}

}  // namespace lirank::rowwise
