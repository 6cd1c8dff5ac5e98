#include "cross_chebyshev_table.h"

#include <cmath>
#include <memory>
#include <mutex>

namespace lirank {
namespace {

std::unique_ptr<ChebyshevTable> make_table(int P) {
  const double pi = 3.14159265358979323846;
  auto t = std::make_unique<ChebyshevTable>();  // zeros
  for (int p = 0; p < P / 2; ++p) {
    t->nodes[p] = (float)std::cos(pi * (p + 0.5) / P);
    for (int m = 0; m < P / 2; ++m) {
      const double even = std::cos(pi * 2 * m * (p + 0.5) / P) * (m ? 2.0 : 1.0) / P;
      const double odd = std::cos(pi * (2 * m + 1) * (p + 0.5) / P) * 2.0 / P;
      t->even[p * kHalf + m] = t->even_transposed[m * kHalf + p] = (float)even;
      t->odd[p * kHalf + m] = t->odd_transposed[m * kHalf + p] = (float)odd;
    }
  }
  return t;
}

}  // namespace

const ChebyshevTable& chebyshev_table(int P) {
  static std::once_flag made[kHalf + 1];
  static std::unique_ptr<ChebyshevTable> tables[kHalf + 1];
  std::call_once(made[P / 2], [&] { tables[P / 2] = make_table(P); });
  return *tables[P / 2];
}

const Ellipses& ellipses() {
  static const Ellipses all = [] {
    Ellipses e;
    for (int i = 0; i < 2 * kEllipses; ++i) {
      const double rho = std::exp2(0.75 + 0.35 * (i % kEllipses));  // 1.7 to 9.2
      e.real[i] = (float)((rho + 1 / rho) / 2);
      e.imaginary[i] = (float)((rho - 1 / rho) / 2);
      e.lead[i] = (float)std::log2(4 / (rho - 1));
      e.nodes[i] = (float)(1 / std::log2(rho));
    }
    return e;
  }();
  return all;
}

}  // namespace lirank
