#include "simd/tables/hashing_kernels.h"
#include "hashing_murmur.h"

#define LIRANK_KERNELS "simd/hashing.h"
#include "simd/foreach_isa.h"
