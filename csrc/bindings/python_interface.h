// What the Python package needs of liblirank.so beside the ops, as C functions. No function here
// knows a version of Python, so lirank_ext/library/native.py reaches them from any by ctypes. The
// pybind11 module wraps the same functions.
#pragma once
#include "ceilings.h"
#include "library/export.h"

// Of this file. It changes with any function here, so that the package refuses a library that was
// built from other sources; lirank_ext/library/load.py has the same number.
LIRANK_EXPORT int lirank_interface();

LIRANK_EXPORT const char* lirank_built_for_torch();
LIRANK_EXPORT const char* lirank_compiler();

// Bytes of [start, start + bytes) for which huge pages were asked; see huge_pages.h.
LIRANK_EXPORT int64_t lirank_move_to_huge_pages(const void* start, int64_t bytes);

// Hashes n keys of `width` bytes, one behind the other: text of units of 1 byte, or code points of
// 4 bytes in native order. Zeros at the end of a key are padding. Returns the position of the first
// key that has no UTF-8, or -1.
LIRANK_EXPORT int64_t lirank_hash_fixed_width(const uint8_t* keys, int64_t n, int64_t width,
                                              int unit, uint32_t seed, int64_t* out);

// How to read str and bytes of the interpreter in this process. native.py finds the offsets by
// measuring strings that it knows. The functions are CPython's, of its stable ABI.
struct lirank_python {
  int64_t type_at, length_at, state_at, text_at;  // of str, in bytes from its address
  const void* str_type;
  uint64_t ascii;  // the bits of `state` that all compact ASCII strings have, and no others
  unsigned long (*type_flags)(const void* type);
  const void* (*list_item)(const void* list, int64_t at);
  const void* (*tuple_item)(const void* tuple, int64_t at);
  int64_t (*str_length)(const void* str);
  uint32_t* (*str_code_points)(const void* str, uint32_t* out, int64_t room, int with_zero);
  int64_t (*bytes_size)(const void* bytes);
  const uint8_t* (*bytes_text)(const void* bytes);
};

// Hashes n items of a list or a tuple from `begin` on. The caller holds the GIL, or a tuple that
// nobody changes. Returns the position of the first item that is neither bytes nor a str that has
// UTF-8, counted from `begin`, or -1.
LIRANK_EXPORT int64_t lirank_hash_sequence(const lirank_python* python, const void* sequence,
                                           int is_tuple, int64_t begin, int64_t n, uint32_t seed,
                                           int64_t* out);

// A builder of static vocabularies (static_vocabulary_builder.h). The table is kept while
// building, the keys are not. Returns null and sets `builder`; or says what was wanted; or returns
// "" where the memory does not suffice.
LIRANK_EXPORT const char* lirank_vocabulary_new(const int64_t* keys, int64_t n, int64_t tag_bits,
                                                int64_t seed, int64_t string_seed, uint8_t* table,
                                                int64_t table_size, void** builder);
// Builds up to `parts` more parts: "building", "done", "duplicate" or "failed"; "" as above.
LIRANK_EXPORT const char* lirank_vocabulary_step(void* builder, int64_t parts);
LIRANK_EXPORT int64_t lirank_vocabulary_parts(const void* builder);
LIRANK_EXPORT int64_t lirank_vocabulary_duplicate(const void* builder);
LIRANK_EXPORT void lirank_vocabulary_delete(void* builder);
