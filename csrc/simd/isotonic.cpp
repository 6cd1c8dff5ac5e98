#include "simd/tables/isotonic_kernels.h"

#define LIRANK_KERNELS "simd/isotonic.h"
#include "simd/foreach_isa.h"
