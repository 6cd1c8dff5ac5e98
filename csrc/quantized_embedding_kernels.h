// What the host side of row-wise quantized tables hands to its kernels, and these: see
// simd/quantized_embedding.h.
#pragma once
#include "dispatch.h"
#include "quantized_embedding_layout.h"

#include <cstdint>

namespace lirank {

struct PoolTable {
  const uint8_t* codes;
  const uint8_t* pairs;
  int64_t code_stride, pair_stride, rows, dim;
  int64_t column;  // where its results start in a row of the output
};

// One call. An item is a (table, bag) pair, table-major: item = table * bags + bag. Its ids are
// those from start(item) to start(item + 1).
struct PoolCall {
  const PoolTable* tables;
  int64_t table_count, bags;
  const void* offsets;   // int64_t or int32_t; not read where fixed > 0
  bool wide;             // offsets are int64_t
  int64_t offset_count;  // items beyond them end at `count`
  int64_t count;         // ids
  int64_t fixed;         // ids of every item, or 0
  const float* weights;  // of the ids, or null
  bool mean;
  int bits;
  float* out;
  int64_t out_stride;

  int64_t start(int64_t item) const {
    if (fixed > 0) return item * fixed;
    if (item >= offset_count) return count;
    return wide ? ((const int64_t*)offsets)[item] : (int64_t)((const int32_t*)offsets)[item];
  }
};

// pool: items [from, to); returns the position of the first bad id, or -1.
// row_dot: <grad, dequantized row>, the gradient of an id's weight.
// quantize_row: false where the row, its scale or its mid is not finite.
// rise: whether no offset is below the one before it.
LIRANK_EACH_ISA(int64_t pool(const PoolCall& call, const int64_t* ids, int64_t from, int64_t to);
                int64_t pool(const PoolCall& call, const int32_t* ids, int64_t from, int64_t to);
                float row_dot(int bits, const PoolTable& t, int64_t row, const float* grad);
                bool quantize_row(const float* w, int64_t dim, int bits, int8_t* codes,
                                  float* scale, float* mid);
                bool rise(const int64_t* offsets, int64_t n);
                bool rise(const int32_t* offsets, int64_t n);)

}  // namespace lirank
