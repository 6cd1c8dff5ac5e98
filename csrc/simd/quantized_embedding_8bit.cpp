// Look-ups in tables of 8-bit codes: a file of its own, so that the two widths compile side by
// side.
#include "simd/tables/quantized_embedding_kernels.h"

#define LIRANK_CODE_BITS 8
#define LIRANK_KERNELS "simd/quantized_embedding.h"
#include "simd/foreach_isa.h"
