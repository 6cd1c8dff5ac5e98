// The kernel that checks the offsets of bags: see simd/bags.h.
#pragma once
#include "library/dispatch.h"

#include <cstdint>

namespace lirank {

// Whether no offset is below the one before it.
LIRANK_EACH_ISA(bool rise(const int64_t* offsets, int64_t n);
                bool rise(const int32_t* offsets, int64_t n);)

}  // namespace lirank
