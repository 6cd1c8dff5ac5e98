// Kernels of vocabulary_lookup, see simd/static_vocabulary.h.
#pragma once
#include "library/dispatch.h"
#include "static_vocabulary_table.h"

namespace lirank {

LIRANK_EACH_ISA(void look_up(const vocabulary::Table& t, const int64_t* keys, int64_t n,
                             int64_t oov, int64_t* rows);)

}  // namespace lirank
