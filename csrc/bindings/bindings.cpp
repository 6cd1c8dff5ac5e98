// lirank_ext._C: what is not a tensor op, for one version of Python. Importing it loads
// liblirank.so, which registers the ops. lirank_ext/library/native.py has the same interface for
// any Python. No Torch header here, so it compiles in seconds and depends on no Torch version.
#include <pybind11/pybind11.h>

#include "bindings/bindings_text.h"
#include "bindings/bindings_vocabulary.h"
#include "bindings/python_interface.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build info and string hashing of lirank_ext; the tensor ops live in liblirank.so.";
  m.def("isa", &lirank_isa_name,
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
        return lirank_move_to_huge_pages((const void*)start, bytes);
      },
      nogil(), "Bytes of [start, start + bytes) for which huge pages were asked.");
  // String hashing for lirank_ext/ops/hashing_text.py; see bindings_text.h.
  m.def("hash_sequence", &lirank::hash_sequence);
  m.def("hash_fixed_width", &lirank::hash_fixed_width);
  lirank::bind_vocabulary(m);
  m.attr("built_for_torch") = lirank_built_for_torch();
  m.attr("compiler") = lirank_compiler();
  m.attr("way") = "pybind11";
}
