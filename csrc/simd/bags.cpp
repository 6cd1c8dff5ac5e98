#include "simd/tables/bags_kernels.h"

#define LIRANK_KERNELS "simd/bags.h"
#include "simd/foreach_isa.h"
