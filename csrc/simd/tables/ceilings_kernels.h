// Bare loops behind the machine's ceilings, see simd/ceilings.h.
#pragma once
#include "library/dispatch.h"

#include <cstdint>

namespace lirank {

LIRANK_EACH_ISA(void stream_copy(char* to, const char* from, int64_t bytes);
                uint64_t gather_rows(const char* table, int64_t row_bytes, const uint32_t* rows,
                                     int64_t n, int64_t ahead, int64_t near);
                float fma_chain(int64_t rounds); float exp_chain(int64_t rounds);
                int64_t float_lanes();)

}  // namespace lirank
