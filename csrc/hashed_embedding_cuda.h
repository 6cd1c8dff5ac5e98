// What the CUDA side of hashed_embedding_bag checks, alike forward and backward.
#pragma once
#include <array>

#include "bags_cuda.h"
#include "hashed_embedding.cuh"
#include "quantized_embedding_layout.h"

namespace lirank {

using Four = std::array<Tensor, 4>;

constexpr const char* kNames[4] = {"quotient_b", "remainder_b", "quotient_c", "remainder_c"};

inline int64_t quotient_rows(int64_t num_buckets, int64_t num_remainders) {
  return (num_buckets + num_remainders - 1) / num_remainders;
}

inline void check_rule(const char* op, int64_t num_buckets, int64_t seed) {
  LIRANK_CHECK(num_buckets > 0 && num_buckets <= int64_t(1) << 32, op, "num_buckets",
               "wanted 1 to 2^32, got ", num_buckets);
  LIRANK_CHECK(seed >= 0 && seed <= int64_t(UINT32_MAX), op, "seed", "wanted 0 to 2^32 - 1, got ",
               seed);
}

inline void check_remainders(const char* op, const char* argument, int64_t rows) {
  LIRANK_CHECK(rows > 0 && rows <= int64_t(UINT32_MAX), op, argument,
               "wanted 1 to 2^32 - 1 rows, got ", rows);
}

inline void check_heights(const char* op, const Four& tables, int64_t num_buckets) {
  const int64_t remainders = tables[1].size(0);
  check_remainders(op, "remainder_b", remainders);
  for (int t = 0; t < 4; ++t) {
    const int64_t rows = t % 2 ? remainders : quotient_rows(num_buckets, remainders);
    LIRANK_CHECK(tables[t].size(0) == rows, op, kNames[t], "wanted ", rows, " rows for ",
                 num_buckets, " buckets and ", remainders, " remainders, got ", shape(tables[t]));
  }
}

inline void check_form(const char* op, const Four& tables) {
  check_floating(op, kNames[0], tables[0]);
  for (int t = 0; t < 4; ++t) {
    check_same_dtype(op, kNames[t], tables[t], tables[0].scalar_type());
    check_dim(op, kNames[t], tables[t], 2);
    check_together(op, kNames[t], tables[t], tables[0]);
  }
  LIRANK_CHECK(tables[0].size(1) > 0, op, kNames[0], "wanted a positive width, got ",
               shape(tables[0]));
  for (int t = 0; t < 4; ++t)
    LIRANK_CHECK(tables[t].size(1) == tables[0].size(1), op, kNames[t], "wanted width ",
                 tables[0].size(1), ", got ", shape(tables[t]));
}

inline void check_packed(const char* op, const Four& tables, int64_t num_buckets, int64_t dim,
                         int64_t bits) {
  LIRANK_CHECK(bits == 8 || bits == 4, op, "bits", "wanted 8 or 4, got ", bits);
  LIRANK_CHECK(dim > 0, op, "dim", "wanted a positive width, got ", dim);
  const int64_t wanted = rowwise::layout(dim, (int)bits).row_bytes;
  for (int t = 0; t < 4; ++t) {
    check_same_dtype(op, kNames[t], tables[t], ScalarType::Byte);
    check_dim(op, kNames[t], tables[t], 2);
    check_together(op, kNames[t], tables[t], tables[0]);
    LIRANK_CHECK(tables[t].size(1) == wanted, op, kNames[t], "wanted ", wanted,
                 " bytes a row for dim ", dim, " at ", bits, " bits, got ", shape(tables[t]));
  }
  check_heights(op, tables, num_buckets);
}

inline gpu::HashedSource source_of(int64_t num_buckets, int64_t num_remainders, int64_t seed,
                                   bool prehashed) {
  return {murmur::row_rule((uint64_t)num_buckets, (uint32_t)num_remainders), (uint32_t)seed,
          prehashed};
}

}  // namespace lirank
