// What code for one instruction set is written with: see foreach_isa.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#define LIRANK_X86 1
#include <immintrin.h>
#else
#define LIRANK_X86 0
#endif

#define LR_INLINE static inline __attribute__((always_inline))
#define LR_METHOD inline __attribute__((always_inline))
