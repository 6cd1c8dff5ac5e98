#include "simd/tables/cross_score_kernels.h"

#define LIRANK_KERNELS "simd/cross_score.h"
#include "simd/foreach_isa.h"
