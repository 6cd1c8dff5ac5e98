// AVX-512 only, and beside it what multiplies bfloat16: one namespace of its own.
#if LIRANK_ISA == 512
#include "library/cpu_features.h"
#if LIRANK_BF16_PRODUCTS
#include "simd/tables/cross_bf16_kernels.h"
#include "simd/target.h"

LIRANK_TARGET_BEGIN(bf16)
namespace lirank::bf16 {
#include "simd/vec.h"
#include "simd/half_lanes.h"
#include "simd/cross_lanes.h"
#include "simd/cross_tile_product.h"
#include "simd/cross_bf16_products.h"
#include "simd/cross_bf16.h"
}  // namespace lirank::bf16
LIRANK_TARGET_END

#endif
#endif
