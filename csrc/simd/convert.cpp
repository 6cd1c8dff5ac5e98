#include "convert_kernels.h"
#include "half.h"

#define LIRANK_KERNELS "simd/convert.h"
#include "simd/foreach_isa.h"
