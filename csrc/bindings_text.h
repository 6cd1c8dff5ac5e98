// String hashing from Python objects and NumPy arrays, for bindings.cpp.
//
// ASCII text is hashed in place. Other text is converted to UTF-8 in a buffer of the worker, one
// key at a time. Nothing is cached in the str objects.
//
// The thread that holds the GIL waits while workers read. They access immutable objects through
// macros that only load memory, and no other thread can run Python at that time. After each chunk
// of 64 K keys (about 1 ms) other Python threads may run, and Ctrl-C is handled.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "export.h"
#include "hashing_text.h"
#include "hashing_utf8.h"
#include "lowest.h"

namespace lirank {

namespace py = pybind11;

[[noreturn]] inline void refuse_text(const std::string& text, bool wrong_type) {
  const std::string message = "lirank::hash_strings: argument 'strings': " + text;
  if (wrong_type) throw py::type_error(message);
  throw py::value_error(message);
}

// A place for the UTF-8 of one key after another.
struct Scratch {
  std::vector<uint8_t> bytes;
  template <typename Unit>
  bool hash(const Unit* text, int64_t n, uint32_t seed, int64_t* out) {
    if ((int64_t)bytes.size() < 4 * n + 16) bytes.resize((size_t)(8 * n + 256));
    const int64_t size = to_utf8(text, n, bytes.data());
    if (size == kNoUtf8) return false;
    *out = (int64_t)murmur::hash_bytes(bytes.data(), size, bytes.data() + bytes.size(), seed);
    return true;
  }
};

template <typename Body>
void parallel_keys(int64_t n, const Body& body) {
  lirank_parallel_for(
      n, 4096,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

// bytes and ASCII str hold their text behind a header of 32 bytes or more; nothing says what
// lies behind the object, so hash_after_header reads backwards from the end.
static_assert(offsetof(PyBytesObject, ob_sval) >= 16 && sizeof(PyASCIIObject) >= 16, "header");

inline bool hash_object(PyObject* key, uint32_t seed, Scratch& scratch, int64_t* out) {
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

[[noreturn]] inline void refuse_object(PyObject* key, int64_t at) {
  const std::string where = " at position " + std::to_string(at);
  if (PyUnicode_Check(key))
    refuse_text("wanted text that has UTF-8, got a lone surrogate" + where, false);
  refuse_text(std::string("wanted str or bytes, got ") + Py_TYPE(key)->tp_name + where, true);
}

inline void check_out(const py::buffer_info& out, int64_t n) {
  if (out.ndim != 1 || out.itemsize != 8 || out.size != n || out.strides[0] != 8 || out.readonly)
    throw py::value_error("wanted a writable buffer of as many int64 as there are keys");
}

// keys: a list or a tuple; out: int64 (n,).
inline void hash_sequence(const py::object& keys, uint32_t seed, const py::buffer& buffer) {
  constexpr int64_t kKeys = 1 << 16, kAhead = 12;
  PyObject* sequence = keys.ptr();
  if (!PyList_Check(sequence) && !PyTuple_Check(sequence))
    throw py::type_error("wanted a list or a tuple");
  const py::buffer_info info = buffer.request(true);
  const int64_t n = PySequence_Fast_GET_SIZE(sequence);
  check_out(info, n);
  int64_t* out = static_cast<int64_t*>(info.ptr);
  for (int64_t from = 0; from < n; from += kKeys) {
    if (PySequence_Fast_GET_SIZE(sequence) != n)
      refuse_text("the list changed its length while it was read", false);
    PyObject** items = PySequence_Fast_ITEMS(sequence) + from;
    const int64_t count = n - from < kKeys ? n - from : kKeys;
    Lowest bad;  // the position of the first key that cannot be hashed
    parallel_keys(count, [&, items](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t i = begin; i < end; ++i) {
        if (i + kAhead < end) __builtin_prefetch(items[i + kAhead]);
        if (!hash_object(items[i], seed, scratch, out + from + i)) return bad.lower_to(i);
      }
    });
    if (bad.get() >= 0) refuse_object(items[bad.get()], from + bad.get());
    {
      py::gil_scoped_release others;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

// keys: n * width bytes; unit 1 for NumPy's S, 4 for U, native order. NumPy pads with zeros.
inline void hash_fixed_width(const py::buffer& keys, int64_t width, int unit, uint32_t seed,
                             const py::buffer& buffer) {
  const py::buffer_info in = keys.request(), info = buffer.request(true);
  if (in.itemsize != 1 || in.ndim != 1 || width < 1 || in.size % width != 0 || in.strides[0] != 1)
    throw py::value_error("wanted whole keys in one run of bytes");
  if (unit != 1 && (unit != 4 || width % 4 != 0))
    throw py::value_error("wanted units of 1 or 4 bytes");
  const int64_t n = in.size / width;
  check_out(info, n);
  const uint8_t* text = static_cast<const uint8_t*>(in.ptr);
  int64_t* out = static_cast<int64_t*>(info.ptr);
  Lowest bad;
  {
    py::gil_scoped_release released;
    parallel_keys(n, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* key = text + i * width;
        int64_t units = width / unit;
        if (unit == 1) {
          while (units > 0 && key[units - 1] == 0) --units;
          out[i] = (int64_t)murmur::hash_bytes(key, units, text + n * width, seed);
        } else {
          const uint32_t* points = reinterpret_cast<const uint32_t*>(key);
          while (units > 0 && points[units - 1] == 0) --units;
          if (!scratch.hash(points, units, seed, out + i)) return bad.lower_to(i);
        }
      }
    });
  }
  if (bad.get() >= 0)
    refuse_text("wanted text that has UTF-8, got a lone surrogate or no character at position " +
                    std::to_string(bad.get()),
                false);
}

}  // namespace lirank
