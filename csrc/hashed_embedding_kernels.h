// What the Torch side hands to the kernels of the hashed embedding, and these: see
// simd/hashed_embedding.h.
#pragma once
#include "dispatch.h"
#include "hashing_murmur.h"

#include <cstdint>

namespace lirank {
namespace hashed {

enum class Element : int { float32, float64, float16, bfloat16 };

// quotient_b, remainder_b, quotient_c, remainder_c
struct Tables {
  const void* base[4];
  int64_t dim;
  Element element;
};

struct PackedTables {
  const uint8_t* codes[4];
  const uint8_t* pairs[4];
  int64_t code_stride, pair_stride, dim;
  int bits;
};

// Ids, and how their rows follow from them.
struct Source {
  const int64_t* ids = nullptr;
  bool prehashed = false;  // ids are hashes
  uint32_t seed = 0;
  murmur::RowRule rule{};
};

struct Bags {
  const void* offsets = nullptr;
  bool wide = true;  // offsets are int64
  bool mean = false;
  int64_t offset_count = 0, fixed = 0, bags = 0, count = 0;
  const void* weights = nullptr;  // float, or double for float64 tables

  int64_t start(int64_t bag) const {
    if (offset_count == 0) return bag * fixed;
    if (bag >= offset_count) return count;
    return wide ? ((const int64_t*)offsets)[bag] : (int64_t)((const int32_t*)offsets)[bag];
  }
};

// A row and the position of the id that hits it, as one number to sort.
inline uint64_t entry(uint32_t row, uint32_t position) { return (uint64_t)row << 32 | position; }

// Gradients of rows, by runs of entries with the same row (see sum_runs).
struct Runs {
  const uint64_t* entries;
  const uint32_t* bag_of;
  const void* grad;  // (bags, dim) float or double
  const void* weights;
  int64_t dim;
  void* out;
  int64_t* rows;  // of each run, for sparse gradients; null: row r of `out` belongs to row r
};

}  // namespace hashed

// pool, dot: bags [from, to), into results or into the gradients of weights.
// sum_runs: entries [from, to) of a sorted list, whose first new run is number `run`. The part that
// continues a run of the entries before goes to `carry`; returns whether there is one.
// hash_rows: the rows of ids [from, to) into four lists; `from` is a multiple of 16.
LIRANK_EACH_ISA(void pool_hashed(const hashed::Tables& t, const hashed::Source& s,
                                 const hashed::Bags& b, int64_t from, int64_t to, void* out);
                void pool_packed(const hashed::PackedTables& t, const hashed::Source& s,
                                 const hashed::Bags& b, int64_t from, int64_t to, void* out);
                void dot_hashed(const hashed::Tables& t, const hashed::Source& s,
                                const hashed::Bags& b, int64_t from, int64_t to, const void* grad,
                                void* out);
                void dot_quantized(const hashed::PackedTables& t, const hashed::Source& s,
                                   const hashed::Bags& b, int64_t from, int64_t to,
                                   const void* grad, void* out);
                bool sum_runs(bool wide, const hashed::Runs& r, int64_t from, int64_t to,
                              int64_t run, void* carry);
                void hash_rows(const hashed::Source& s, int64_t from, int64_t to,
                               uint32_t* const* lists);)

}  // namespace lirank
