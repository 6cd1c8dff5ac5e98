// What the host side of row-wise quantized tables hands to its kernels, and these: see
// simd/quantized_embedding.h and simd/quantized_embedding_rows.h.
#pragma once
#include "bags.h"
#include "library/dispatch.h"
#include "quantized_embedding_layout.h"

#include <cstdint>

namespace lirank {

struct PoolTable {
  const uint8_t* codes;
  const uint8_t* pairs;
  int64_t code_stride, pair_stride, rows, dim;
  int64_t column;  // where its results start in a row of the output
};

// One call: its bags, whose items are (table, bag) pairs, and where results go.
struct PoolCall {
  const PoolTable* tables;
  int64_t table_count;
  int bits;
  Bags bags;
  float* out;
  int64_t out_stride;

  int64_t start(int64_t item) const { return bags.start(item); }
  int64_t items() const { return table_count * bags.bag_count; }
};

// pool_8bit, pool_4bit: items [from, to) of tables of that code width; returns the position of the
// first bad id, or -1.
// row_dot: <grad, dequantized row>, the gradient of an id's weight.
// quantize_row: false if the row, its scale or its mid is not finite.
LIRANK_EACH_ISA(int64_t pool_8bit(const PoolCall& call, int64_t from, int64_t to);
                int64_t pool_4bit(const PoolCall& call, int64_t from, int64_t to);
                float row_dot(int bits, const PoolTable& t, int64_t row, const float* grad);
                bool quantize_row(const float* w, int64_t dim, int bits, int8_t* codes,
                                  float* scale, float* mid);)

}  // namespace lirank
