// How the host side names and calls kernels that are compiled once per instruction set.
//
//   LIRANK_EACH_ISA(void hash_ids(const int64_t* ids, int64_t n, int64_t* out);)
//   LIRANK_DISPATCH(hash_ids, ids, n, out);
//
// Kernels are defined in csrc/simd, see simd/foreach_isa.h. A build for one instruction set alone
// (LIRANK_ONLY_ISA, see setup.py) calls its kernels without asking.
#pragma once
#include "library/cpu_features.h"

#if defined(LIRANK_ONLY_ISA)
#if LIRANK_ONLY_ISA == 512
#define LIRANK_ONLY avx512
#elif LIRANK_ONLY_ISA == 256
#define LIRANK_ONLY avx2
#else
#define LIRANK_ONLY plain
#endif
#define LIRANK_EACH_ISA(...) \
  namespace LIRANK_ONLY {    \
  __VA_ARGS__                \
  }
#define LIRANK_DISPATCH(fn, ...) ::lirank::LIRANK_ONLY::fn(__VA_ARGS__)
#elif defined(__x86_64__)
#define LIRANK_EACH_ISA(...) \
  namespace plain {          \
  __VA_ARGS__                \
  }                          \
  namespace avx2 {           \
  __VA_ARGS__                \
  }                          \
  namespace avx512 {         \
  __VA_ARGS__                \
  }
#define LIRANK_DISPATCH(fn, ...)                                                   \
  (::lirank::isa() == ::lirank::Isa::avx512                                        \
       ? ::lirank::avx512::fn(__VA_ARGS__)                                         \
       : (::lirank::isa() == ::lirank::Isa::avx2 ? ::lirank::avx2::fn(__VA_ARGS__) \
                                                 : ::lirank::plain::fn(__VA_ARGS__)))
#else
#define LIRANK_EACH_ISA(...) \
  namespace plain {          \
  __VA_ARGS__                \
  }
#define LIRANK_DISPATCH(fn, ...) ::lirank::plain::fn(__VA_ARGS__)
#endif
