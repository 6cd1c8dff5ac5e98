// Compiles the kernels of one family for one instruction set.
//
//   // simd/isotonic.cpp
//   #include "isotonic.h"  // declares them: LIRANK_EACH_ISA
//   #define LIRANK_KERNELS "simd/isotonic.h"
//   #include "simd/foreach_isa.h"
//
// The build compiles every .cpp file of csrc/simd three times, with LIRANK_ISA 0 (plain C++), 256
// (AVX2) and 512 (AVX-512); the kernels land in lirank::plain, lirank::avx2 and lirank::avx512.
// Other processors than x86-64 have the plain ones alone. A kernel header has no include guard and
// is written against vec.h; where an instruction set has something of its own, LIRANK_ISA tells.
#include "simd/target.h"

#if LIRANK_ISA == 0

namespace lirank::plain {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::plain

#elif LIRANK_ISA == 256 && LIRANK_X86

LIRANK_TARGET_BEGIN(avx2)
namespace lirank::avx2 {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::avx2
LIRANK_TARGET_END

#elif LIRANK_ISA == 512 && LIRANK_X86

LIRANK_TARGET_BEGIN(avx512)
namespace lirank::avx512 {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::avx512
LIRANK_TARGET_END

#endif
