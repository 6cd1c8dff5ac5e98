// The builder of static vocabularies for bindings.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>

#include "static_vocabulary_builder.h"

namespace lirank {

namespace py = pybind11;

// keys: int64 (n,); table: uint8 of the size that the layout asks for, kept while building.
struct VocabularyBuilder {
  py::buffer_info table;
  std::unique_ptr<vocabulary::Builder> builder;

  VocabularyBuilder(const py::buffer& keys, int64_t tag_bits, int64_t seed, int64_t string_seed,
                    const py::buffer& out)
      : table(out.request(true)) {
    const py::buffer_info in = keys.request();
    if (in.ndim != 1 || in.itemsize != 8 || (in.size > 1 && in.strides[0] != 8))
      throw py::value_error("wanted keys in one run of int64");
    if (in.size > vocabulary::kMostKeys || tag_bits < 0 || tag_bits > vocabulary::kMostTagBits)
      throw py::value_error("wanted at most 2^40 keys and 0 to 32 bits a tag");
    const vocabulary::Header h = vocabulary::header(in.size, tag_bits, (uint64_t)seed, string_seed);
    if (table.ndim != 1 || table.itemsize != 1 || table.readonly || table.strides[0] != 1 ||
        table.size != vocabulary::layout(h).size || (uintptr_t)table.ptr % 8 != 0)
      throw py::value_error("wanted a table of another size, at a multiple of 8");
    py::gil_scoped_release released;
    builder = std::make_unique<vocabulary::Builder>(static_cast<const int64_t*>(in.ptr), h,
                                                    static_cast<uint8_t*>(table.ptr));
  }

  const char* step(int64_t parts) {
    py::gil_scoped_release released;
    switch (builder->step(parts)) {
      case vocabulary::Builder::State::building:
        return "building";
      case vocabulary::Builder::State::done:
        return "done";
      case vocabulary::Builder::State::duplicate:
        return "duplicate";
      default:
        return "failed";
    }
  }
};

inline void bind_vocabulary(py::module_& m) {
  py::class_<VocabularyBuilder>(m, "VocabularyBuilder")
      .def(py::init<const py::buffer&, int64_t, int64_t, int64_t, const py::buffer&>())
      .def("step", &VocabularyBuilder::step)
      .def_property_readonly("parts", [](const VocabularyBuilder& b) { return b.builder->parts(); })
      .def_property_readonly("duplicate_hash", [](const VocabularyBuilder& b) {
        return (int64_t)b.builder->duplicate();
      });
}

}  // namespace lirank
