#include "simd/tables/ceilings_kernels.h"

#define LIRANK_KERNELS "simd/ceilings.h"
#include "simd/foreach_isa.h"
