// What the Torch side hands to the kernels of the hashed embedding, and these: see
// simd/hashed_embedding.h.
#pragma once
#include "bags.h"
#include "library/dispatch.h"
#include "hashing_murmur.h"

#include <cstdint>

namespace lirank {
namespace hashed {

// quotient_b, remainder_b, quotient_c, remainder_c
struct FloatTables {
  const void* base[4];
  int64_t dim;
  DType dtype;
};

struct PackedTables {
  const uint8_t* codes[4];
  const uint8_t* pairs[4];
  int64_t code_stride, pair_stride, dim;
  int bits;
};

// A row and the position of the id that hits it, as one number to sort.
inline uint64_t entry(uint32_t row, uint32_t position) { return (uint64_t)row << 32 | position; }

// Gradients of rows, by runs of entries with the same row (see sum_runs).
struct GradientRuns {
  const uint64_t* entries;
  const uint32_t* bag_of;
  const void* grad;  // (bags, dim) float or double
  const void* weights;
  int64_t dim;
  void* out;
  int64_t* rows;  // of each run, for sparse gradients; null: row r of `out` belongs to row r
};

// A table whose rows are moved by the sums of runs: row-wise AdaGrad, or SGD if there are no sums.
struct RowUpdate {
  GradientRuns runs;  // `out` and `rows` are not used
  int64_t count;      // entries
  void* table;        // (height, dim) of `dtype`
  void* sums;         // (height) float or double, or null
  DType dtype;
  double lr, l2, eps;
};

}  // namespace hashed

// pool, dot: bags [from, to), into results or into the gradients of weights.
// sum_runs: entries [from, to) of a sorted list, whose first new run is number `run`. The part that
// continues a run of the entries before goes to `carry`; returns whether there is one.
// move_runs: entries [from, to) of a sorted list; moves the rows of runs that lie inside. The part
// that continues a run of the entries before goes to `head`, and that of a run that goes on to
// `tail`; returns whether there is the former. Writes over `tail` in any case. move_row: one row,
// by the sum of its run. hash_rows: the rows of ids [from, to) into four lists; `from` is a
// multiple of 16.
LIRANK_EACH_ISA(
    void pool_hashed(const hashed::FloatTables& t, const murmur::IdRule& s, const Bags& b,
                     int64_t from, int64_t to, void* out);
    void pool_packed(const hashed::PackedTables& t, const murmur::IdRule& s, const Bags& b,
                     int64_t from, int64_t to, void* out);
    void dot_hashed(const hashed::FloatTables& t, const murmur::IdRule& s, const Bags& b,
                    int64_t from, int64_t to, const void* grad, void* out);
    void dot_quantized(const hashed::PackedTables& t, const murmur::IdRule& s, const Bags& b,
                       int64_t from, int64_t to, const void* grad, void* out);
    bool sum_runs(bool is_double, const hashed::GradientRuns& r, int64_t from, int64_t to,
                  int64_t run, void* carry);
    bool move_runs(const hashed::RowUpdate& u, int64_t from, int64_t to, void* head, void* tail);
    void move_row(const hashed::RowUpdate& u, int64_t row, const void* gradient);
    void hash_rows(const murmur::IdRule& s, const int64_t* ids, int64_t from, int64_t to,
                   uint32_t* const* lists);)

}  // namespace lirank
