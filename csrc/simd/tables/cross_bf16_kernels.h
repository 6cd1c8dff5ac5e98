// What cross_bf16.cpp hands to the kernels in simd/cross_bf16.h, and these.
#pragma once
#include <cstdint>

#include "simd/tables/cross_kernels.h"

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

struct Bf16SavedActivations {
  uint16_t *hidden, *mixed;
  int64_t columns;
};

struct Bf16Net {
  const Bf16Layer* stack[2];
  int64_t count[2];
  int64_t d, merge;  // merge: 0 sum, 1 mean, 2 concatenation
};

namespace bf16 {

constexpr int64_t kTileSamples = 32;
constexpr int64_t kBlock = 512;  // elements of a block of panels

// Panel c of a matrix.
void pack(const Bf16Matrix& one, int64_t c);
// Floats that a task needs for layers up to (d, r, projections).
int64_t scratch(int64_t d, int64_t r, int64_t token_dim, int64_t projections, bool net);
// Samples [begin, end), `step` at a time, multiplied by tiles (AMX) or by pairs (vdpbf16ps).
void layer_task(bool tiles, const Bf16Layer& layer, const uint16_t* x0, const uint16_t* x,
                int64_t begin, int64_t end, int64_t step, uint16_t* y,
                const Bf16SavedActivations& kept, float* scratch);
void net_task(bool tiles, const Bf16Net& net, const uint16_t* x, int64_t begin, int64_t end,
              int64_t step, int64_t rank, int64_t token_dim, uint16_t* y, float* scratch);

}  // namespace bf16
}  // namespace lirank
