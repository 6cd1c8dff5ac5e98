#include "cpu_features.h"

#include <cstdlib>
#include <cstring>

#include "export.h"

namespace lirank {
namespace {

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512cd"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::plain;
}

// A request for more than the processor has is clamped, not obeyed: obeying it
// would end in an illegal instruction.
Isa choose() {
  const Isa most = best();
  const char* asked = std::getenv("LIRANK_ISA");
  if (asked == nullptr) return most;
  Isa wanted = most;
  if (std::strcmp(asked, "plain") == 0) wanted = Isa::plain;
  if (std::strcmp(asked, "avx2") == 0) wanted = Isa::avx2;
  return wanted < most ? wanted : most;
}

}  // namespace

const Isa active_isa = choose();

const char* isa_name() {
  switch (active_isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "plain";
  }
}

}  // namespace lirank

LIRANK_EXPORT const char* lirank_isa_name() { return lirank::isa_name(); }
