#include "simd/tables/convert_kernels.h"
#include "library/half.h"

#define LIRANK_KERNELS "simd/convert.h"
#include "simd/foreach_isa.h"
