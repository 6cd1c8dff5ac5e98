// lirank_ext._C: what is not a tensor op. Importing it loads liblirank.so, which registers
// the ops. No Torch header here, so it compiles in seconds and depends on no Torch version.
#include <pybind11/pybind11.h>

#include <string>

#include "ceilings.h"
#include "export.h"
#include "huge_pages.h"
#include "bindings_text.h"
#include "bindings_vocabulary.h"

namespace py = pybind11;

#define LIRANK_STRINGIFY_(x) #x
#define LIRANK_STRINGIFY(x) LIRANK_STRINGIFY_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build info and string hashing of lirank_ext; the tensor ops live in liblirank.so.";
  m.def(
      "isa", [] { return std::string(lirank_isa_name()); },
      "Instruction set in use: plain, avx2, avx512, avx512_bf16 or amx.");
  // The machine's ceilings, for the benchmarks; see ceilings.h.
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.def("ceiling_copy", &lirank_ceiling_copy, nogil());
  m.def("ceiling_gather", &lirank_ceiling_gather, nogil());
  m.def("ceiling_fma", &lirank_ceiling_fma, nogil());
  m.def("ceiling_exp", &lirank_ceiling_exp, nogil());
  m.def(
      "move_to_huge_pages",
      [](uintptr_t start, int64_t bytes) {
        return lirank::move_to_huge_pages((const void*)start, bytes);
      },
      nogil(), "Bytes of [start, start + bytes) for which huge pages were asked.");
  // String hashing for lirank_ext/ops/hashing_text.py; see bindings_text.h.
  m.def("hash_sequence", &lirank::hash_sequence);
  m.def("hash_fixed_width", &lirank::hash_fixed_width);
  lirank::bind_vocabulary(m);
  m.attr("built_for_torch") = LIRANK_STRINGIFY(LIRANK_BUILT_FOR_TORCH);
  m.attr("compiler") = __VERSION__;
}
