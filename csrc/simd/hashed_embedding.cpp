#include "library/half.h"
#include "simd/tables/hashed_embedding_kernels.h"
#include "quantized_embedding_layout.h"

#define LIRANK_KERNELS "simd/hashed_embedding.h"
#include "simd/foreach_isa.h"
