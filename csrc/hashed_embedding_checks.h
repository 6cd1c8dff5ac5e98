// What the ops of the hashed embedding check, on every backend.
#pragma once
#include "bags_checks.h"
#include "hashing_murmur.h"
#include "quantized_embedding_checks.h"

#include <array>

namespace lirank {

using FourTables = std::array<Tensor, 4>;

constexpr const char* kTableNames[4] = {"quotient_b", "remainder_b", "quotient_c", "remainder_c"};

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

inline murmur::IdRule id_rule(int64_t num_buckets, int64_t num_remainders, int64_t seed,
                              bool prehashed) {
  return {murmur::row_rule((uint64_t)num_buckets, (uint32_t)num_remainders), (uint32_t)seed,
          prehashed};
}

// Bags of ids that the rule reads. Ids of 32 bits are hashed as the same numbers; hashes have 64.
template <typename B>
BagTensors read_hashed_bags(const char* op, const BagArguments& a, ScalarType weight_type,
                            const Tensor& beside, bool prehashed) {
  if (prehashed) check_same_dtype(op, "ids", a.ids, ScalarType::Long);
  const Tensor wide = checked_ids(op, a.ids);
  return read_bags<B>(op, {a.ids_name, wide, a.offsets, a.mode, a.weights, a.include_last_offset},
                      weight_type, beside);
}

inline void check_heights(const char* op, const FourTables& tables, int64_t num_buckets) {
  const int64_t remainders = tables[1].size(0);
  check_remainders(op, "remainder_b", remainders);
  for (int t = 0; t < 4; ++t) {
    const int64_t rows = t % 2 ? remainders : quotient_rows(num_buckets, remainders);
    LIRANK_CHECK(tables[t].size(0) == rows, op, kTableNames[t], "wanted ", rows, " rows for ",
                 num_buckets, " buckets and ", remainders, " remainders, got ", shape(tables[t]));
  }
}

inline void check_float_tables(const char* op, const FourTables& tables, int64_t num_buckets) {
  check_floating(op, kTableNames[0], tables[0]);
  for (int t = 0; t < 4; ++t) {
    check_same_dtype(op, kTableNames[t], tables[t], tables[0].scalar_type());
    check_dim(op, kTableNames[t], tables[t], 2);
    check_together(op, kTableNames[t], tables[t], tables[0]);
  }
  LIRANK_CHECK(tables[0].size(1) > 0, op, kTableNames[0], "wanted a positive width, got ",
               shape(tables[0]));
  for (int t = 0; t < 4; ++t)
    LIRANK_CHECK(tables[t].size(1) == tables[0].size(1), op, kTableNames[t], "wanted width ",
                 tables[0].size(1), ", got ", shape(tables[t]));
  check_heights(op, tables, num_buckets);
}

inline void check_packed_tables(const char* op, const FourTables& tables, int64_t num_buckets,
                                int64_t dim, int64_t bits, int64_t most) {
  check_bits(op, bits);
  check_width(op, dim, most);
  for (int t = 0; t < 4; ++t) {
    check_packed(op, kTableNames[t], tables[t], dim, bits);
    check_together(op, kTableNames[t], tables[t], tables[0]);
  }
  check_heights(op, tables, num_buckets);
}

}  // namespace lirank
