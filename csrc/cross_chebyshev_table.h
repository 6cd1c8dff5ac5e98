// Tables of the Chebyshev interpolation in cross_chebyshev.h, made on first use.
#pragma once
#include <cstdint>

namespace lirank {

constexpr int kChebyshevLevels = 8;  // level l has 16 * l nodes

// At P nodes x_p = cos(pi (p + 1/2) / P), an interpolant is sum_m c_m T_m(x) with
// c_m = sum_p value_p * to_coefficients[p * P + m]; to_nodes is its transpose.
struct ChebyshevTable {
  const float *nodes, *to_coefficients, *to_nodes;
};

const ChebyshevTable& chebyshev_table(int level);

// The first level that is proven good enough, 0 where none is, or none cheaper than r exact
// queries: more than r / 2 nodes. `spread` is (q_max - q_min) / 2 * (k_max - k_min) in natural
// units of the score, and not a number where the input holds one.
int chebyshev_level(const float* limits, float spread, int64_t r);

// Largest spread per level, forward and backward; derived in cross_chebyshev.h.
extern const float kForwardSpread[kChebyshevLevels];
extern const float kBackwardSpread[kChebyshevLevels];

}  // namespace lirank
