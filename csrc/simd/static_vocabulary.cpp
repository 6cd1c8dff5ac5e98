#include "simd/tables/static_vocabulary_kernels.h"

#define LIRANK_KERNELS "simd/static_vocabulary.h"
#include "simd/foreach_isa.h"
