// Chooses the instruction set of the kernels: the best that the processor has, or the one named by
// LIRANK_ISA=plain|avx2|avx512|avx512_bf16|amx. It is chosen once, when the library is loaded.
#pragma once

// Compilers that know products of bfloat16.
#if defined(LIRANK_ONLY_ISA) && LIRANK_ONLY_ISA != 512
#define LIRANK_BF16_PRODUCTS 0
#elif defined(__x86_64__) && defined(__linux__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define LIRANK_BF16_PRODUCTS 1
#else
#define LIRANK_BF16_PRODUCTS 0
#endif

namespace lirank {
enum class Isa { plain = 0, avx2 = 1, avx512 = 2 };
extern const Isa active_isa;
inline Isa isa() { return active_isa; }

// Products of bfloat16, beside AVX-512: none; pairs in vectors (vdpbf16ps); tiles (AMX).
enum class Bf16Products { none = 0, pairs = 1, tiles = 2 };
extern const Bf16Products active_bf16_products;
inline Bf16Products bf16_products() { return active_bf16_products; }

const char* isa_name();
}  // namespace lirank
