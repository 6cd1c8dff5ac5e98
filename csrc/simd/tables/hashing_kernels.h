// Kernels of murmur_hash, see simd/hashing.h.
#pragma once
#include "library/dispatch.h"

#include <cstdint>

namespace lirank {

LIRANK_EACH_ISA(void hash_ids(const int64_t* ids, int64_t n, uint32_t seed, int64_t* out);)

}  // namespace lirank
