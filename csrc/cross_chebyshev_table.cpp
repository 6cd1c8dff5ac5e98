#include "cross_chebyshev_table.h"

#include <cmath>
#include <mutex>
#include <vector>

namespace lirank {

// tests/test_cross_chebyshev.py derives both again.
const float kForwardSpread[kChebyshevLevels] = {1.7513f,  4.1715f,  6.4206f,  8.5949f,
                                                10.7274f, 12.8322f, 14.9167f, 16.9853f};
const float kBackwardSpread[kChebyshevLevels] = {1.3785f, 3.5574f,  5.5658f,  7.4983f,
                                                 9.3897f, 11.2550f, 13.1016f, 14.9338f};

int chebyshev_level(const float* limits, float spread, int64_t r) {
  for (int level = 1; level <= kChebyshevLevels && 32 * level <= r; ++level)
    if (spread <= limits[level - 1]) return level;
  return 0;
}

const ChebyshevTable& chebyshev_table(int level) {
  static std::once_flag made[kChebyshevLevels];
  static std::vector<float> numbers[kChebyshevLevels];
  static ChebyshevTable tables[kChebyshevLevels];
  const int at = level - 1;
  std::call_once(made[at], [&] {
    const int P = 16 * level;
    const double pi = 3.14159265358979323846;
    numbers[at].resize(P + 2 * P * P);
    float *nodes = numbers[at].data(), *forth = nodes + P, *back = forth + P * P;
    for (int p = 0; p < P; ++p) {
      nodes[p] = (float)std::cos(pi * (p + 0.5) / P);
      for (int m = 0; m < P; ++m) {
        const double c = std::cos(pi * m * (p + 0.5) / P) * (m ? 2.0 : 1.0) / P;
        forth[p * P + m] = back[m * P + p] = (float)c;
      }
    }
    tables[at] = {nodes, forth, back};
  });
  return tables[at];
}

}  // namespace lirank
