#include "bindings/python_interface.h"

#include <cstring>
#include <memory>
#include <new>

#include "library/huge_pages.h"
#include "static_vocabulary_builder.h"
#include "bindings/text_keys.h"

#define LIRANK_STRINGIFY_(x) #x
#define LIRANK_STRINGIFY(x) LIRANK_STRINGIFY_(x)

int lirank_interface() { return 1; }
const char* lirank_built_for_torch() { return LIRANK_STRINGIFY(LIRANK_BUILT_FOR_TORCH); }
const char* lirank_compiler() { return __VERSION__; }

int64_t lirank_move_to_huge_pages(const void* start, int64_t bytes) {
  return lirank::move_to_huge_pages(start, bytes);
}

namespace lirank {
namespace {

template <typename T>
T load(const void* object, int64_t at) {
  T value;
  memcpy(&value, static_cast<const char*>(object) + at, sizeof(T));
  return value;
}

// Reads as the interpreter does, without calling it for compact ASCII, the usual case. The
// functions that it calls for the rest only read memory, so that workers may call them while the
// thread that waits for them holds the GIL.
struct SequenceReader {
  static constexpr unsigned long kBytes = 1ul << 27, kStr = 1ul << 28;  // Py_TPFLAGS_..._SUBCLASS

  lirank_python python;
  const void* sequence;
  int is_tuple;
  int64_t begin;
  std::vector<uint32_t> points;

  void fetch(int64_t first, int64_t count, const void** objects) const {
    const auto item = is_tuple ? python.tuple_item : python.list_item;
    for (int64_t i = 0; i < count; ++i) objects[i] = item(sequence, begin + first + i);
  }

  bool hash(const void* key, uint32_t seed, Scratch& scratch, int64_t* out) {
    const auto type = load<const void*>(key, python.type_at);
    if (type == python.str_type &&
        (load<uint32_t>(key, python.state_at) & python.ascii) == python.ascii) {
      const auto text = static_cast<const uint8_t*>(key) + python.text_at;
      *out = (int64_t)murmur::hash_after_header(text, load<int64_t>(key, python.length_at), seed);
      return true;
    }
    const unsigned long flags = python.type_flags(type);
    if (flags & kBytes) {
      const int64_t size = python.bytes_size(key);
      *out = (int64_t)murmur::hash_after_header(python.bytes_text(key), size, seed);
      return true;
    }
    if (!(flags & kStr)) return false;
    const int64_t n = python.str_length(key);
    if ((int64_t)points.size() < n + 1) points.resize((size_t)(2 * n + 64));
    if (!python.str_code_points(key, points.data(), (int64_t)points.size(), 0)) return false;
    return scratch.hash(points.data(), n, seed, out);
  }
};

}  // namespace
}  // namespace lirank

int64_t lirank_hash_sequence(const lirank_python* python, const void* sequence, int is_tuple,
                             int64_t begin, int64_t n, uint32_t seed, int64_t* out) {
  return lirank::hash_objects(lirank::SequenceReader{*python, sequence, is_tuple, begin, {}}, n,
                              seed, out);
}

int64_t lirank_hash_fixed_width(const uint8_t* keys, int64_t n, int64_t width, int unit,
                                uint32_t seed, int64_t* out) {
  lirank::Lowest bad;
  lirank::parallel_keys(n, [&](int64_t begin, int64_t end) {
    lirank::Scratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* key = keys + i * width;
      int64_t units = width / unit;
      if (unit == 1) {
        while (units > 0 && key[units - 1] == 0) --units;
        out[i] = (int64_t)lirank::murmur::hash_bytes(key, units, keys + n * width, seed);
      } else {
        const uint32_t* points = reinterpret_cast<const uint32_t*>(key);
        while (units > 0 && points[units - 1] == 0) --units;
        if (!scratch.hash(points, units, seed, out + i)) return bad.lower_to(i);
      }
    }
  });
  return bad.get();
}

using lirank::vocabulary::Builder;

// No exception may leave a C function.
template <typename Call>
static const char* guarded(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return "";
  }
}

const char* lirank_vocabulary_new(const int64_t* keys, int64_t n, int64_t tag_bits, int64_t seed,
                                  int64_t string_seed, uint8_t* table, int64_t table_size,
                                  void** builder) {
  namespace vocabulary = lirank::vocabulary;
  *builder = nullptr;
  if (n < 0 || n > vocabulary::kMostKeys || tag_bits < 0 || tag_bits > vocabulary::kMostTagBits)
    return "wanted at most 2^40 keys and 0 to 32 bits a tag";
  const vocabulary::Header h = vocabulary::header(n, tag_bits, (uint64_t)seed, string_seed);
  if (table_size != vocabulary::layout(h).size || (uintptr_t)table % 8 != 0)
    return "wanted a table of another size, at a multiple of 8";
  return guarded([&]() -> const char* {
    *builder = new Builder(keys, h, table);
    return nullptr;
  });
}

const char* lirank_vocabulary_step(void* builder, int64_t parts) {
  return guarded([&] {
    switch (static_cast<Builder*>(builder)->step(parts)) {
      case Builder::State::building:
        return "building";
      case Builder::State::done:
        return "done";
      case Builder::State::duplicate:
        return "duplicate";
      default:
        return "failed";
    }
  });
}

int64_t lirank_vocabulary_parts(const void* builder) {
  return static_cast<const Builder*>(builder)->parts();
}

int64_t lirank_vocabulary_duplicate(const void* builder) {
  return (int64_t)static_cast<const Builder*>(builder)->duplicate();
}

void lirank_vocabulary_delete(void* builder) { delete static_cast<Builder*>(builder); }
