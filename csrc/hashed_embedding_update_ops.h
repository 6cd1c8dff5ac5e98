// The front of the update of hashed tables by their gradients: schema, checks and registration, one
// text for CPU and CUDA. A backend B moves the rows in B::update(on, call).
#pragma once
#include "hashed_embedding_backward_ops.h"

namespace lirank {

constexpr const char* kSumNames[4] = {"sum_quotient_b", "sum_remainder_b", "sum_quotient_c",
                                      "sum_remainder_c"};

// A checked call. Without sums it is a step of SGD.
struct HashedUpdateCall {
  HashedGradientCall gradients;
  const FourTables& tables;
  bool has_sums;
  std::array<Tensor, 4> sums;
  Tensor lr;  // on the device of the tables or on the CPU
  double l2, eps;
};

inline void check_mutable(const char* op, const char* argument, const Tensor& t) {
  LIRANK_CHECK(t.is_contiguous(), op, argument,
               "wanted a contiguous tensor, because it is changed in place, got a strided one");
}

inline double read_rate(const Tensor& lr) {
  return lr.scalar_type() == ScalarType::Double ? *lr.const_data_ptr<double>()
                                                : (double)*lr.const_data_ptr<float>();
}

template <typename B>
struct HashedUpdateOps {
  using Device = typename B::Device;

  static void update(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                     const OptionalTensor& weights, const Tensor& quotient_b,
                     const Tensor& remainder_b, const Tensor& quotient_c, const Tensor& remainder_c,
                     const OptionalTensor& sum_quotient_b, const OptionalTensor& sum_remainder_b,
                     const OptionalTensor& sum_quotient_c, const OptionalTensor& sum_remainder_c,
                     const Tensor& lr, int64_t num_buckets, int64_t seed, bool mean,
                     bool include_last_offset, bool prehashed, double l2, double eps) {
    const std::string mode = mean ? "mean" : kSum;
    const Device on("hashed_embedding_bag_update", "quotient_b", quotient_b);
    const FourTables tables = {quotient_b, remainder_b, quotient_c, remainder_c};
    check_rule(on.op, num_buckets, seed);
    check_float_tables(on.op, tables, num_buckets);
    for (int t = 0; t < 4; ++t) check_mutable(on.op, kTableNames[t], tables[t]);
    const bool has_sums = sum_quotient_b.has_value();
    const std::array<Tensor, 4> sums = checked_sums(
        on.op, tables, {&sum_quotient_b, &sum_remainder_b, &sum_quotient_c, &sum_remainder_c});
    check_rate(on.op, lr, quotient_b);
    B::update(on, {checked_gradients(on, grad, quotient_b, num_buckets, remainder_b.size(0), seed,
                                     prehashed,
                                     {"ids", ids, offsets, mode, weights, include_last_offset}),
                   tables, has_sums, sums, lr, l2, eps});
  }

 private:
  static HashedGradientCall checked_gradients(const Device& on, const Tensor& grad,
                                              const Tensor& table, int64_t num_buckets,
                                              int64_t num_remainders, int64_t seed, bool prehashed,
                                              const BagArguments& a) {
    check_same_dtype(on.op, "grad", grad, table.scalar_type());
    check_together(on.op, "grad", grad, table);
    LIRANK_CHECK(grad.dim() == 2 && grad.size(1) == table.size(1), on.op, "grad", "wanted width ",
                 table.size(1), ", got shape ", shape(grad));
    return read_gradient_call<B>(on, grad, num_buckets, num_remainders, seed, prehashed, a);
  }

  static std::array<Tensor, 4> checked_sums(const char* op, const FourTables& tables,
                                            const std::array<const OptionalTensor*, 4>& sums) {
    std::array<Tensor, 4> found;
    const bool given = sums[0]->has_value();
    for (int t = 0; t < 4; ++t) {
      LIRANK_CHECK(sums[t]->has_value() == given, op, kSumNames[t],
                   "wanted the sums of all four tables or of none, got ",
                   given ? "None" : "a tensor");
      if (!given) continue;
      found[t] = **sums[t];
      check_same_dtype(op, kSumNames[t], found[t], compute_type(tables[t].scalar_type()));
      check_together(op, kSumNames[t], found[t], tables[t]);
      LIRANK_CHECK(found[t].dim() == 1 && found[t].size(0) == tables[t].size(0), op, kSumNames[t],
                   "wanted shape (", tables[t].size(0), ",), got ", shape(found[t]));
      check_mutable(op, kSumNames[t], found[t]);
    }
    return found;
  }

  static void check_rate(const char* op, const Tensor& lr, const Tensor& table) {
    const ScalarType type = lr.scalar_type();
    LIRANK_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, "lr",
                 "wanted torch.float32 or torch.float64, got ", dtype_name(type));
    LIRANK_CHECK(lr.dim() == 0, op, "lr", "wanted a tensor without dimensions, got shape ",
                 shape(lr));
    if (lr.is_cuda()) check_together(op, "lr", lr, table);
  }
};

template <typename Library>
void define_hashed_update(Library& m) {
  m.def(
      "hashed_embedding_bag_update(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, Tensor(a4!) quotient_b, Tensor(a5!) remainder_b, Tensor(a6!) "
      "quotient_c, Tensor(a7!) remainder_c, Tensor(a8!)? sum_quotient_b, Tensor(a9!)? "
      "sum_remainder_b, Tensor(a10!)? sum_quotient_c, Tensor(a11!)? sum_remainder_c, Tensor lr, "
      "int num_buckets, int seed, bool mean, bool include_last_offset, bool prehashed, float l2, "
      "float eps) -> ()");
}

template <typename B, typename Library>
void register_hashed_update(Library& m) {
  m.impl("hashed_embedding_bag_update", TORCH_BOX(&HashedUpdateOps<B>::update));
}

}  // namespace lirank
