#include "simd/tables/quantized_embedding_kernels.h"

#define LIRANK_KERNELS "simd/quantized_embedding_rows.h"
#include "simd/foreach_isa.h"
