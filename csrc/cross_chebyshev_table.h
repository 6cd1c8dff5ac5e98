// Tables of the Chebyshev interpolation in simd/cross_chebyshev.h, made on first use.
#pragma once
#include <cstdint>

namespace lirank {

constexpr int kMostNodes = 64, kHalf = kMostNodes / 2;

// The P nodes are +-x_p, x_p = cos(pi (p + 1/2) / P), p < P / 2. An interpolant is
// sum_m c_m T_m(x) with, for the sums and differences of the values at x_p and -x_p,
//   c_2m = sum_p sum_of[p] * even[p * kHalf + m], c_2m+1 = sum_p difference[p] * odd[p * kHalf +
//   m].
// The other two are their transposes. 0 beyond P / 2.
struct ChebyshevTable {
  float nodes[kHalf];
  float even[kHalf * kHalf], odd[kHalf * kHalf];
  float even_transposed[kHalf * kHalf], odd_transposed[kHalf * kHalf];
};

// P: even, up to kMostNodes.
const ChebyshevTable& chebyshev_table(int P);

// Ellipses around [-1, 1] with foci at its ends, for the bound: half axes `real` and `imaginary`,
// rho = real + imaginary, lead = log2(4 / (rho - 1)), nodes = 1 / log2(rho).
constexpr int kEllipses = 8;
struct Ellipses {  // twice over, for vectors of 16
  float real[2 * kEllipses], imaginary[2 * kEllipses], lead[2 * kEllipses], nodes[2 * kEllipses];
};
const Ellipses& ellipses();

}  // namespace lirank
