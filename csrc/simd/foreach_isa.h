// Compiles one kernel header once per instruction set.
//
//   #define LIRANK_KERNELS "simd/isotonic.h"
//   #include "simd/foreach_isa.h"
//   ... LIRANK_DISPATCH(function, arguments) ...
//
// The header lands in namespaces lirank::plain, lirank::avx2 and
// lirank::avx512 and is written against vec.h alone. It must not instantiate
// templates of the standard library: an instantiation made under a target
// pragma could be merged with the plain one by the linker.
#pragma once
#include "cpu_features.h"
#include "simd/isa_macros.h"

#define LIRANK_ISA 0
namespace lirank::plain {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::plain
#undef LIRANK_ISA

#if LIRANK_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#define LIRANK_ISA 256
namespace lirank::avx2 {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::avx2
#undef LIRANK_ISA
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                                  \
    __attribute__((                                                                            \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,popcnt"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,popcnt,prefer-vector-width=512")
#endif
#define LIRANK_ISA 512
namespace lirank::avx512 {
#include "simd/vec.h"
#include LIRANK_KERNELS
}  // namespace lirank::avx512
#undef LIRANK_ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define LIRANK_DISPATCH(fn, ...)                                                   \
  (::lirank::isa() == ::lirank::Isa::avx512                                        \
       ? ::lirank::avx512::fn(__VA_ARGS__)                                         \
       : (::lirank::isa() == ::lirank::Isa::avx2 ? ::lirank::avx2::fn(__VA_ARGS__) \
                                                 : ::lirank::plain::fn(__VA_ARGS__)))

#else
#define LIRANK_DISPATCH(fn, ...) ::lirank::plain::fn(__VA_ARGS__)
#endif
