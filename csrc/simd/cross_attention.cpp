#include "simd/tables/cross_kernels.h"

#define LIRANK_KERNELS "simd/cross_attention.h"
#include "simd/foreach_isa.h"
