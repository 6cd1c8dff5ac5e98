// String hashing from Python objects and NumPy arrays, for bindings.cpp.
//
// Nothing is cached in the str objects. The thread that holds the GIL waits while workers read.
// They access immutable objects through macros that only load memory, and no other thread can run
// Python at that time. After each chunk of 64 K keys (about 1 ms) other Python threads may run, and
// Ctrl-C is handled.
#pragma once
#include <pybind11/pybind11.h>

#include "bindings/python_interface.h"
#include "bindings/text_keys.h"

namespace lirank {

namespace py = pybind11;

// bytes and ASCII str hold their text behind a header of 32 bytes or more; nothing says what
// lies behind the object, so hash_after_header reads backwards from the end.
static_assert(offsetof(PyBytesObject, ob_sval) >= 16 && sizeof(PyASCIIObject) >= 16, "header");

struct MacroReader {
  PyObject* const* items;

  void fetch(int64_t first, int64_t count, const void** objects) const {
    for (int64_t i = 0; i < count; ++i) objects[i] = items[first + i];
  }

  bool hash(const void* object, uint32_t seed, Scratch& scratch, int64_t* out) const {
    PyObject* key = static_cast<PyObject*>(const_cast<void*>(object));
    const uint8_t* text;
    int64_t size;
    if (PyUnicode_Check(key)) {
#if PY_VERSION_HEX < 0x030c0000
      if (!PyUnicode_IS_READY(key)) return false;
#endif
      size = PyUnicode_GET_LENGTH(key);
      text = static_cast<const uint8_t*>(PyUnicode_DATA(key));
      if (!PyUnicode_IS_ASCII(key)) {
        if (PyUnicode_KIND(key) == PyUnicode_1BYTE_KIND) return scratch.hash(text, size, seed, out);
        if (PyUnicode_KIND(key) == PyUnicode_2BYTE_KIND)
          return scratch.hash((const Py_UCS2*)text, size, seed, out);
        return scratch.hash((const Py_UCS4*)text, size, seed, out);
      }
    } else if (PyBytes_Check(key)) {
      size = PyBytes_GET_SIZE(key);
      text = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(key));
    } else {
      return false;
    }
    *out = (int64_t)murmur::hash_after_header(text, size, seed);
    return true;
  }
};

inline int64_t* check_out(const py::buffer_info& out, int64_t n) {
  if (out.ndim != 1 || out.itemsize != 8 || out.size != n || out.strides[0] != 8 || out.readonly)
    throw py::value_error("wanted a writable buffer of as many int64 as there are keys");
  return static_cast<int64_t*>(out.ptr);
}

// keys: a list or a tuple; out: int64 (n,). Returns the position of the first key that is neither
// bytes nor a str that has UTF-8, or -1.
inline int64_t hash_sequence(const py::object& keys, uint32_t seed, const py::buffer& buffer) {
  constexpr int64_t kKeys = 1 << 16;
  PyObject* sequence = keys.ptr();
  if (!PyList_Check(sequence) && !PyTuple_Check(sequence))
    throw py::type_error("wanted a list or a tuple");
  const py::buffer_info info = buffer.request(true);
  const int64_t n = PySequence_Fast_GET_SIZE(sequence);
  int64_t* out = check_out(info, n);
  for (int64_t from = 0; from < n; from += kKeys) {
    if (PySequence_Fast_GET_SIZE(sequence) != n)
      throw py::value_error("the list changed its length while it was read");
    const MacroReader reader{PySequence_Fast_ITEMS(sequence) + from};
    const int64_t bad = hash_objects(reader, std::min(kKeys, n - from), seed, out + from);
    if (bad >= 0) return from + bad;
    {
      py::gil_scoped_release others;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  return -1;
}

// keys: n * width bytes; unit 1 for NumPy's S, 4 for U, native order. NumPy pads with zeros.
// Returns the position of the first key that has no UTF-8, or -1.
inline int64_t hash_fixed_width(const py::buffer& keys, int64_t width, int unit, uint32_t seed,
                                const py::buffer& buffer) {
  const py::buffer_info in = keys.request(), info = buffer.request(true);
  if (in.itemsize != 1 || in.ndim != 1 || width < 1 || in.size % width != 0 || in.strides[0] != 1)
    throw py::value_error("wanted whole keys in one run of bytes");
  if (unit != 1 && (unit != 4 || width % 4 != 0))
    throw py::value_error("wanted units of 1 or 4 bytes");
  const int64_t n = in.size / width;
  int64_t* out = check_out(info, n);
  py::gil_scoped_release released;
  return lirank_hash_fixed_width(static_cast<const uint8_t*>(in.ptr), n, width, unit, seed, out);
}

}  // namespace lirank
