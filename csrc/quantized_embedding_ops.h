// The front of quantized_embedding_bag, quantized_embedding_bags and the gradients of their
// weights: schemas, checks and registration, one text for CPU and CUDA. A backend B does the work:
// - B::one_table and B::many_tables read packed tables into B::Tables;
// - B::known_width(grad) is the sum of all widths as far as it is known without reading them, or
// -1;
// - B::pool(on, tables, bags, output_dtype) returns the pooled rows;
// - B::weight_gradient(on, tables, bags, grad) returns the gradient of the weights.
// Source: LiRank (arXiv 2402.06859), embedding table quantization.
#pragma once
#include "bags_checks.h"
#include "quantized_embedding_checks.h"

namespace lirank {

template <typename B>
struct QuantizedBagsOps {
  using Device = typename B::Device;
  using Tables = typename B::Tables;  // of a call: their number `count`, their `width` together

  static Tensor bag(const Tensor& packed, const Tensor& indices, const OptionalTensor& offsets,
                    int64_t dim, int64_t bits, std::string mode, const OptionalTensor& weights,
                    bool include_last_offset, OptionalType output_dtype) {
    const Device on("quantized_embedding_bag", "packed", packed);
    const Tables tables = one_table(on, packed, dim, bits);
    const ScalarType type = checked_output_dtype(on.op, output_dtype);
    const BagTensors bags =
        bags_of(on, {"indices", indices, offsets, mode, weights, include_last_offset}, packed);
    return B::pool(on, tables, bags, type);
  }

  static Tensor bags(const Tensor& packed, const Tensor& rows, const Tensor& dims,
                     const Tensor& indices, const Tensor& offsets, int64_t bits, std::string mode,
                     const OptionalTensor& weights, OptionalType output_dtype, int64_t total_dim) {
    const Device on("quantized_embedding_bags", "packed", packed);
    check_mode(on.op, mode, weights);
    const ScalarType type = checked_output_dtype(on.op, output_dtype);
    const Tables tables = many_tables(on, packed, rows, dims, bits, total_dim);
    const BagTensors bags = table_bags(on, tables, indices, offsets, mode, weights, packed);
    return B::pool(on, tables, bags, type);
  }

  static Tensor bag_backward(const Tensor& grad, const Tensor& packed, const Tensor& indices,
                             const OptionalTensor& offsets, int64_t dim, int64_t bits,
                             bool include_last_offset) {
    const Device on("quantized_embedding_bag_backward", "packed", packed);
    const Tables tables = one_table(on, packed, dim, bits);
    const BagTensors bags =
        bags_of(on, {"indices", indices, offsets, kSum, kNone, include_last_offset}, packed);
    return weight_gradient(on, tables, bags, grad, packed);
  }

  static Tensor bags_backward(const Tensor& grad, const Tensor& packed, const Tensor& rows,
                              const Tensor& dims, const Tensor& indices, const Tensor& offsets,
                              int64_t bits) {
    const Device on("quantized_embedding_bags_backward", "packed", packed);
    check_dim(on.op, "grad", grad, 2);
    const Tables tables = many_tables(on, packed, rows, dims, bits, B::known_width(grad));
    const BagTensors bags = table_bags(on, tables, indices, offsets, kSum, kNone, packed);
    return weight_gradient(on, tables, bags, grad, packed);
  }

 private:
  static Tables one_table(const Device& on, const Tensor& packed, int64_t dim, int64_t bits) {
    check_bits(on.op, bits);
    check_width(on.op, dim, B::kWidest);
    check_packed(on.op, "packed", packed, dim, bits);
    return B::one_table(on, packed, dim, (int)bits);
  }

  // total_dim: the sum of all widths, or -1 if the caller does not know it.
  static Tables many_tables(const Device& on, const Tensor& packed, const Tensor& rows,
                            const Tensor& dims, int64_t bits, int64_t total_dim) {
    check_same_dtype(on.op, "packed", packed, ScalarType::Byte);
    check_dim(on.op, "packed", packed, 1);
    check_bits(on.op, bits);
    for (auto [name, t] : {std::pair<const char*, const Tensor*>{"rows", &rows}, {"dims", &dims}}) {
      check_same_dtype(on.op, name, *t, ScalarType::Long);
      check_dim(on.op, name, *t, 1);
      check_together(on.op, name, *t, packed);
    }
    LIRANK_CHECK(rows.size(0) == dims.size(0) && rows.size(0) > 0, on.op, "dims",
                 "wanted one width per table, at least one, got ", shape(dims), " for rows ",
                 shape(rows));
    return B::many_tables(on, packed, to_contiguous(rows), to_contiguous(dims), (int)bits,
                          total_dim);
  }

  static BagTensors bags_of(const Device& on, const BagArguments& a, const Tensor& packed) {
    return read_bags<B>(on.op, a, ScalarType::Float, packed);
  }

  static BagTensors table_bags(const Device& on, const Tables& tables, const Tensor& indices,
                               const OptionalTensor& offsets, const std::string& mode,
                               const OptionalTensor& weights, const Tensor& packed) {
    check_dim(on.op, "offsets", *offsets, 1);
    LIRANK_CHECK(offsets->numel() > 0 && (offsets->numel() - 1) % tables.count == 0, on.op,
                 "offsets", "wanted tables * bags + 1 offsets for ", tables.count, " tables, got ",
                 offsets->numel());
    BagTensors bags = bags_of(on, {"indices", indices, offsets, mode, weights, true}, packed);
    bags.view.bag_count /= tables.count;
    return bags;
  }

  static Tensor weight_gradient(const Device& on, const Tables& tables, const BagTensors& bags,
                                const Tensor& grad, const Tensor& packed) {
    check_floating(on.op, "grad", grad);
    LIRANK_CHECK(
        grad.dim() == 2 && grad.size(0) == bags.view.bag_count && grad.size(1) == tables.width,
        on.op, "grad", "wanted shape (", bags.view.bag_count, ", ", tables.width, "), got ",
        shape(grad));
    check_together(on.op, "grad", grad, packed);
    return B::weight_gradient(on, tables, bags, B::as_type(grad, ScalarType::Float));
  }
};

template <typename Library>
void define_quantized_bags(Library& m) {
  m.def(
      "quantized_embedding_bag(Tensor packed, Tensor indices, Tensor? offsets, int dim, int "
      "bits=8, str mode=\"sum\", Tensor? per_sample_weights=None, bool include_last_offset=False, "
      "ScalarType? output_dtype=None) -> Tensor");
  m.def(
      "quantized_embedding_bags(Tensor packed, Tensor rows, Tensor dims, Tensor indices, Tensor "
      "offsets, int bits=8, str mode=\"sum\", Tensor? per_sample_weights=None, ScalarType? "
      "output_dtype=None, int total_dim=-1) -> Tensor");
  m.def(
      "quantized_embedding_bag_backward(Tensor grad, Tensor packed, Tensor indices, Tensor? "
      "offsets, int dim, int bits, bool include_last_offset) -> Tensor");
  m.def(
      "quantized_embedding_bags_backward(Tensor grad, Tensor packed, Tensor rows, Tensor dims, "
      "Tensor indices, Tensor offsets, int bits) -> Tensor");
}

template <typename B, typename Library>
void register_quantized_bags(Library& m) {
  using Ops = QuantizedBagsOps<B>;
  m.impl("quantized_embedding_bag", TORCH_BOX(&Ops::bag));
  m.impl("quantized_embedding_bags", TORCH_BOX(&Ops::bags));
  m.impl("quantized_embedding_bag_backward", TORCH_BOX(&Ops::bag_backward));
  m.impl("quantized_embedding_bags_backward", TORCH_BOX(&Ops::bags_backward));
}

}  // namespace lirank
