// The builder of static vocabularies for bindings.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <new>

#include "bindings/python_interface.h"

namespace lirank {

namespace py = pybind11;

// keys: int64 (n,); table: uint8 of the size that the layout asks for, kept while building.
class VocabularyBuilder {
 public:
  VocabularyBuilder(const py::buffer& keys, int64_t tag_bits, int64_t seed, int64_t string_seed,
                    const py::buffer& out)
      : table_(out.request(true)) {
    const py::buffer_info in = keys.request();
    if (in.ndim != 1 || in.itemsize != 8 || (in.size > 1 && in.strides[0] != 8))
      throw py::value_error("wanted keys in one run of int64");
    if (table_.ndim != 1 || table_.itemsize != 1 || table_.readonly || table_.strides[0] != 1)
      throw py::value_error("wanted a writable table in one run of bytes");
    void* made = nullptr;
    const char* wrong;
    {
      py::gil_scoped_release released;
      wrong =
          lirank_vocabulary_new(static_cast<const int64_t*>(in.ptr), in.size, tag_bits, seed,
                                string_seed, static_cast<uint8_t*>(table_.ptr), table_.size, &made);
    }
    builder_.reset(made);
    if (wrong != nullptr && *wrong == 0) throw std::bad_alloc();
    if (wrong != nullptr) throw py::value_error(wrong);
  }

  const char* step(int64_t parts) {
    py::gil_scoped_release released;
    const char* state = lirank_vocabulary_step(builder_.get(), parts);
    if (*state == 0) throw std::bad_alloc();
    return state;
  }

  int64_t parts() const { return lirank_vocabulary_parts(builder_.get()); }
  int64_t duplicate() const { return lirank_vocabulary_duplicate(builder_.get()); }

 private:
  struct Delete {
    void operator()(void* builder) const { lirank_vocabulary_delete(builder); }
  };
  py::buffer_info table_;
  std::unique_ptr<void, Delete> builder_;
};

inline void bind_vocabulary(py::module_& m) {
  py::class_<VocabularyBuilder>(m, "VocabularyBuilder")
      .def(py::init<const py::buffer&, int64_t, int64_t, int64_t, const py::buffer&>())
      .def("step", &VocabularyBuilder::step)
      .def_property_readonly("parts", &VocabularyBuilder::parts)
      .def_property_readonly("duplicate_hash", &VocabularyBuilder::duplicate);
}

}  // namespace lirank
