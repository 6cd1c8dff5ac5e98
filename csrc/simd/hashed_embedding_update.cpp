#include "library/half.h"
#include "simd/tables/hashed_embedding_kernels.h"

#define LIRANK_KERNELS "simd/hashed_embedding_update.h"
#include "simd/foreach_isa.h"
