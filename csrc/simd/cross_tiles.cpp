#include "simd/tables/cross_kernels.h"

#define LIRANK_KERNELS "simd/cross_tiles.h"
#include "simd/foreach_isa.h"
