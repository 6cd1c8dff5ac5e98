#include "library/cpu_features.h"

#include <cstdlib>
#include <cstring>

#include "library/export.h"

#if LIRANK_BF16_PRODUCTS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lirank {
namespace {

// All levels in order; each has those before it.
constexpr const char* kNames[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

#if LIRANK_BF16_PRODUCTS
// Linux gives a process the tiles' 8 KB of state for the asking.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

int bf16_level() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return 2;  // AVX512_BF16
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 3;
  const bool tiles = d & 1u << 22 && d & 1u << 24;  // AMX-BF16, AMX-TILE
  return tiles && may_use_tiles() ? 4 : 3;
}

// On a Xeon with AMX vdpbf16ps does half the products of float FMAs, layers took twice as long; on
// Zen 4 and 5 it does twice as many.
bool pairs_are_fast() { return __builtin_cpu_is("amd"); }
#endif

int best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512cd")) {
#if LIRANK_BF16_PRODUCTS
    return bf16_level();
#else
    return 2;
#endif
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// The only level that was built, or -1.
#if !defined(LIRANK_ONLY_ISA)
constexpr int kOnly = -1;
#else
constexpr int kOnly = LIRANK_ONLY_ISA / 256;
#endif

// A request for more than the processor has is clamped, not obeyed: obeying it
// would end in an illegal instruction.
int choose() {
  const int most = kOnly >= 0 && kOnly < 2 ? kOnly : best();
  const char* asked = std::getenv("LIRANK_ISA");
  for (int level = kOnly > 0 ? kOnly : 0; asked != nullptr && level <= most; ++level)
    if (std::strcmp(asked, kNames[level]) == 0) return level;
#if LIRANK_BF16_PRODUCTS
  if (most == 3 && !pairs_are_fast()) return 2;
#endif
  return most;
}

const int level = choose();

}  // namespace

const Isa active_isa = (Isa)(level < 2 ? level : 2);
const Bf16Products active_bf16_products = (Bf16Products)(level < 2 ? 0 : level - 2);

const char* isa_name() { return kNames[level]; }

}  // namespace lirank

LIRANK_EXPORT const char* lirank_isa_name() { return lirank::isa_name(); }
