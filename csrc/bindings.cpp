// lirank_ext._C: what is not a tensor op. Importing it loads liblirank.so, which registers
// the ops. No Torch header here, so it compiles in seconds and depends on no Torch version.
#include <pybind11/pybind11.h>

#include <string>

#include "export.h"

namespace py = pybind11;

#define LIRANK_STRINGIFY_(x) #x
#define LIRANK_STRINGIFY(x) LIRANK_STRINGIFY_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build info and string hashing of lirank_ext; the tensor ops live in liblirank.so.";
  m.def(
      "isa", [] { return std::string(lirank_isa_name()); },
      "Instruction set in use: plain, avx2 or avx512.");
  m.attr("built_for_torch") = LIRANK_STRINGIFY(LIRANK_BUILT_FOR_TORCH);
  m.attr("compiler") = __VERSION__;
}
