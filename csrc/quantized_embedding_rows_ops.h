// The front of quantize_rows, dequantize_rows, pack_rows and unpack_rows: schemas, checks and
// registration, one text for CPU and CUDA. A backend B does the work in B::quantize, B::dequantize,
// B::pack and B::unpack.
// Source: LiRank (arXiv 2402.06859), middle-max row-wise quantization.
#pragma once
#include "quantized_embedding_checks.h"

namespace lirank {

using QuantizedRows = std::tuple<Tensor, Tensor, Tensor>;  // codes, scale, mid

// What a backend returns: a result, and the first row that it could not take, or -1.
template <typename Result>
struct RowsResult {
  Result result;
  int64_t bad_row;
};

template <typename B>
struct QuantizedRowsOps {
  using Device = typename B::Device;

  static QuantizedRows quantize_rows(const Tensor& weight, int64_t bits) {
    const char* op = "quantize_rows";
    check_dim(op, "weight", weight, 2);
    check_bits(op, bits);
    LIRANK_CHECK(weight.scalar_type() != ScalarType::Double && is_floating(weight.scalar_type()),
                 op, "weight", "wanted float32, float16 or bfloat16, got ",
                 dtype_name(weight.scalar_type()));
    LIRANK_CHECK(weight.size(1) > 0, op, "weight", "wanted a positive width, got shape ",
                 shape(weight));
    const Device on(op, "weight", weight);
    const auto [rows, bad] = B::quantize(on, B::as_type(weight, ScalarType::Float), (int)bits);
    LIRANK_CHECK(bad < 0, op, "weight",
                 "wanted finite values in a range that float32 holds, got row ", bad,
                 " with NaN, Inf or a larger range");
    return rows;
  }

  static Tensor dequantize_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid) {
    const char* op = "dequantize_rows";
    check_rows(op, codes, scale, mid);
    const Device on(op, "codes", codes);
    return B::dequantize(on, to_contiguous(codes), to_contiguous(scale), to_contiguous(mid));
  }

  static Tensor pack_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid,
                          int64_t bits) {
    const char* op = "pack_rows";
    check_rows(op, codes, scale, mid);
    check_bits(op, bits);
    check_width(op, codes.size(1), B::kWidest);
    const Device on(op, "codes", codes);
    const auto [packed, bad] =
        B::pack(on, to_contiguous(codes), to_contiguous(scale), to_contiguous(mid), (int)bits);
    LIRANK_CHECK(bad < 0, op, "codes", "wanted codes in [-8, 7] for 4 bits, got row ", bad,
                 " with others");
    return packed;
  }

  static QuantizedRows unpack_rows(const Tensor& packed, int64_t dim, int64_t bits) {
    const char* op = "unpack_rows";
    check_bits(op, bits);
    check_width(op, dim, B::kWidest);
    check_packed(op, "packed", packed, dim, bits);
    const Device on(op, "packed", packed);
    return B::unpack(on, packed, dim, (int)bits);
  }

 private:
  static void check_rows(const char* op, const Tensor& codes, const Tensor& scale,
                         const Tensor& mid) {
    check_dim(op, "codes", codes, 2);
    check_same_dtype(op, "codes", codes, ScalarType::Char);
    for (auto [name, t] : {std::pair<const char*, const Tensor*>{"scale", &scale}, {"mid", &mid}}) {
      check_same_dtype(op, name, *t, ScalarType::Float);
      check_together(op, name, *t, codes);
      LIRANK_CHECK(t->dim() == 1 && t->size(0) == codes.size(0), op, name, "wanted shape (",
                   codes.size(0), ",), got ", shape(*t));
    }
  }
};

template <typename Library>
void define_quantized_rows(Library& m) {
  m.def("quantize_rows(Tensor weight, int bits=8) -> (Tensor, Tensor, Tensor)");
  m.def("dequantize_rows(Tensor codes, Tensor scale, Tensor mid) -> Tensor");
  m.def("pack_rows(Tensor codes, Tensor scale, Tensor mid, int bits=8) -> Tensor");
  m.def("unpack_rows(Tensor packed, int dim, int bits=8) -> (Tensor, Tensor, Tensor)");
}

template <typename B, typename Library>
void register_quantized_rows(Library& m) {
  using Ops = QuantizedRowsOps<B>;
  m.impl("quantize_rows", TORCH_BOX(&Ops::quantize_rows));
  m.impl("dequantize_rows", TORCH_BOX(&Ops::dequantize_rows));
  m.impl("pack_rows", TORCH_BOX(&Ops::pack_rows));
  m.impl("unpack_rows", TORCH_BOX(&Ops::unpack_rows));
}

}  // namespace lirank
