// Which instruction set the kernels use: the best the processor has, or the one
// named by LIRANK_ISA=plain|avx2|avx512, read once when the library is loaded.
#pragma once

namespace lirank {
enum class Isa { plain = 0, avx2 = 1, avx512 = 2 };
extern const Isa active_isa;
inline Isa isa() { return active_isa; }
const char* isa_name();
}  // namespace lirank
