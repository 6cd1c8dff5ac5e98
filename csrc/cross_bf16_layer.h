// What cross_bf16.cpp hands to simd/cross_bf16.h and simd/cross_bf16_products.h.
#pragma once
#include <cstdint>

#include "cross_layer.h"

namespace lirank {

// One matrix for the products: element (column, k) is from[column / each][column % each][k].
struct Bf16Matrix {
  const uint16_t* from[3];
  int64_t each, columns, k;
  uint16_t* panels;
};

// in: panels of all projections, depth d; u: panels of depth r; or, direct, the weights as they
// lie. bias may be null; `attention` has no weights.
struct Bf16Layer {
  bool direct;
  const uint16_t *in, *u, *bias;
  const uint16_t *rows_in[3], *rows_u;
  Layer<float> attention;
};

struct Bf16Kept {
  uint16_t *hidden, *mixed;
  int64_t columns;
};

struct Bf16Net {
  const Bf16Layer* stack[2];
  int64_t count[2];
  int64_t d, merge;  // merge: 0 sum, 1 mean, 2 concatenation
};

}  // namespace lirank
