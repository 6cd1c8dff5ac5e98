// What the ops of row-wise quantized tables check, on every backend.
#pragma once
#include "library/checks.h"
#include "quantized_embedding_layout.h"

namespace lirank {

inline void check_bits(const char* op, int64_t bits) {
  LIRANK_CHECK(bits == 8 || bits == 4, op, "bits", "wanted 8 or 4, got ", bits);
}

// most: the most columns that the backend takes.
inline void check_width(const char* op, int64_t dim, int64_t most) {
  LIRANK_CHECK(dim > 0, op, "dim", "wanted a positive width, got ", dim);
  LIRANK_CHECK(dim <= most, op, "dim", "wanted at most ", most, " columns, got ", dim);
}

inline void check_packed(const char* op, const char* argument, const Tensor& packed, int64_t dim,
                         int64_t bits) {
  check_same_dtype(op, argument, packed, ScalarType::Byte);
  check_dim(op, argument, packed, 2);
  const int64_t wanted = rowwise::layout(dim, (int)bits).row_bytes;
  LIRANK_CHECK(packed.size(1) == wanted, op, argument, "wanted ", wanted, " bytes a row for dim ",
               dim, " at ", bits, " bits, got shape ", shape(packed));
}

// The tables of a concatenation, whose heights and widths are numbers on the CPU.
struct TableSizes {
  int64_t width = 0;     // of all together
  bool aligned = false;  // each starts on 64 bytes; else they follow one another without gaps
};

inline int64_t aligned_to_64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline TableSizes check_table_sizes(const char* op, const int64_t* rows, const int64_t* dims,
                                    int64_t tables, int64_t bits, int64_t size, int64_t most) {
  int64_t width = 0, tight = 0, aligned = 0;
  for (int64_t t = 0; t < tables; ++t) {
    check_width(op, dims[t], most);
    LIRANK_CHECK(rows[t] >= 0, op, "rows", "wanted no negative number, got ", rows[t],
                 " for table ", t);
    const int64_t row_bytes = rowwise::layout(dims[t], (int)bits).row_bytes;
    LIRANK_CHECK(rows[t] <= size / row_bytes, op, "packed", "wanted ", rows[t], " rows of ",
                 row_bytes, " bytes for table ", t, ", got ", size, " bytes");
    tight += rows[t] * row_bytes;
    aligned += aligned_to_64(rows[t] * row_bytes);
    width += dims[t];
  }
  LIRANK_CHECK(size == tight || size == aligned, op, "packed", "wanted ", tight,
               " bytes (tables end to end) or ", aligned, " (each start on 64 bytes), got ", size);
  return {width, size == aligned};
}

}  // namespace lirank
