// What code for one instruction set is written with: the features of a processor that the compiler
// may use, and how functions are marked.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#define LIRANK_X86 1
#else
#define LIRANK_X86 0
#endif

#if LIRANK_X86 && LIRANK_ISA > 0
#include <immintrin.h>
#endif

// LIRANK_TARGET_BEGIN(avx2) ... LIRANK_TARGET_END: the functions between the two may use AVX2.
// No template of the standard library may be instantiated there: the linker could take that copy
// for the one of plain C++.
#define LIRANK_FEATURES_avx2 "avx2,fma,f16c,bmi,bmi2,popcnt"
#define LIRANK_FEATURES_avx512 \
  LIRANK_FEATURES_avx2 ",avx512f,avx512bw,avx512dq,avx512vl,avx512cd" LIRANK_WIDE_VECTORS
#define LIRANK_FEATURES_bf16 LIRANK_FEATURES_avx512 ",avx512bf16,amx-tile,amx-bf16"

#define LIRANK_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define LIRANK_TARGET_BEGIN(level) LIRANK_TARGET(LIRANK_FEATURES_##level)
#if defined(__clang__)
#define LIRANK_WIDE_VECTORS
#define LIRANK_TARGET(features) \
  LIRANK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define LIRANK_TARGET_END _Pragma("clang attribute pop")
#else
#define LIRANK_WIDE_VECTORS ",prefer-vector-width=512"
#define LIRANK_TARGET(features) _Pragma("GCC push_options") LIRANK_PRAGMA(GCC target(features))
#define LIRANK_TARGET_END _Pragma("GCC pop_options")
#endif

#define LR_INLINE static inline __attribute__((always_inline))
#define LR_METHOD inline __attribute__((always_inline))
