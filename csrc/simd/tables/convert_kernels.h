// Kernels that widen and narrow 16-bit floats, see simd/convert.h.
#pragma once
#include "library/dispatch.h"

#include <cstdint>

namespace lirank {

LIRANK_EACH_ISA(void widen_numbers(const void* from, bool bfloat, int64_t n, float* to);
                void narrow_numbers(const float* from, int64_t n, bool bfloat, void* to);)

}  // namespace lirank
