// Reads the bags of a call and checks their shapes, dtypes and devices, for CPU and CUDA alike. The
// backend checks the values of offsets: the CPU reads them (cpu_backend.h), and the kernels of a
// GPU count bad ones (kernels/errors.cuh).
#pragma once
#include "bags.h"
#include "library/checks.h"

namespace lirank {

// Bags, and the tensors that they point into.
struct BagTensors {
  Tensor ids, offsets, weights;
  Bags view;
};

// The arguments of an op that say what its bags are. The op calls its ids `ids_name`.
struct BagArguments {
  const char* ids_name;
  const Tensor& ids;
  const OptionalTensor& offsets;
  const std::string& mode;
  const OptionalTensor& weights;
  bool include_last_offset;
};

// For ops without a mode or weights.
inline const std::string kSum = "sum";
inline const OptionalTensor kNone;

inline void check_mode(const char* op, const std::string& mode, const OptionalTensor& weights) {
  LIRANK_CHECK(mode == "sum" || mode == "mean", op, "mode", "wanted 'sum' or 'mean', got '", mode,
               "'");
  LIRANK_CHECK(!(weights && mode == "mean"), op, "per_sample_weights",
               "wanted mode 'sum' with weights, got '", mode, "'");
}

inline void read_offsets(const char* op, const BagArguments& a, BagTensors& bags) {
  Bags& b = bags.view;
  if (!a.offsets) {
    LIRANK_CHECK(a.ids.dim() == 1 || a.ids.dim() == 2, op, a.ids_name,
                 "wanted 1 or 2 dimensions without offsets, got shape ", shape(a.ids));
    LIRANK_CHECK(!a.include_last_offset, op, "include_last_offset",
                 "wanted offsets with it, got None");
    b.bag_count = a.ids.size(0);
    b.ids_per_bag = a.ids.dim() == 1 ? 1 : a.ids.size(1);
    return;
  }
  check_dim(op, a.ids_name, a.ids, 1);
  check_index_dtype(op, "offsets", *a.offsets);
  check_dim(op, "offsets", *a.offsets, 1);
  check_together(op, "offsets", *a.offsets, a.ids);
  LIRANK_CHECK(!a.include_last_offset || a.offsets->numel() > 0, op, "offsets",
               "wanted at least one with include_last_offset, got shape ", shape(*a.offsets));
  bags.offsets = to_contiguous(*a.offsets);
  b.offsets = bags.offsets.const_data_ptr();
  b.offset_count = bags.offsets.numel();
  b.offsets_are_int64 = a.offsets->scalar_type() == ScalarType::Long;
  b.bag_count = b.offset_count - (a.include_last_offset ? 1 : 0);
}

template <typename B>
void read_weights(const char* op, const BagArguments& a, ScalarType type, BagTensors& bags) {
  if (!a.weights) return;
  check_floating(op, "per_sample_weights", *a.weights);
  check_together(op, "per_sample_weights", *a.weights, a.ids);
  bool same = a.weights->dim() == a.ids.dim();
  for (int64_t i = 0; same && i < a.ids.dim(); ++i) same = a.weights->size(i) == a.ids.size(i);
  LIRANK_CHECK(same, op, "per_sample_weights", "wanted the shape of ", a.ids_name, " ",
               shape(a.ids), ", got ", shape(*a.weights));
  bags.weights = B::as_type(*a.weights, type);
  bags.view.weights = bags.weights.const_data_ptr();
}

// weight_type: the dtype in which kernels read weights. beside: a tensor on the device of the call.
template <typename B>
BagTensors read_bags(const char* op, const BagArguments& a, ScalarType weight_type,
                     const Tensor& beside) {
  check_mode(op, a.mode, a.weights);
  check_index_dtype(op, a.ids_name, a.ids);
  check_together(op, a.ids_name, a.ids, beside);
  BagTensors bags;
  bags.ids = to_contiguous(a.ids);
  bags.view.ids = bags.ids.const_data_ptr();
  bags.view.ids_are_int64 = a.ids.scalar_type() == ScalarType::Long;
  bags.view.id_count = a.ids.numel();
  bags.view.mean = a.mode == "mean";
  read_offsets(op, a, bags);
  if (bags.view.offsets) B::check_offsets(op, a.ids_name, bags.view);
  read_weights<B>(op, a, weight_type, bags);
  return bags;
}

inline DType dtype_of(ScalarType type) {
  return type == ScalarType::Double     ? DType::float64
         : type == ScalarType::Half     ? DType::float16
         : type == ScalarType::BFloat16 ? DType::bfloat16
                                        : DType::float32;
}

using OptionalType = std::optional<ScalarType>;

// The dtype of a result: float32 where none is asked for. The schemas have no default dtype,
// because AOTInductor reads one as a number and refuses it.
inline ScalarType checked_output_dtype(const char* op, OptionalType asked) {
  const ScalarType type = asked.value_or(ScalarType::Float);
  LIRANK_CHECK(is_floating(type), op, "output_dtype",
               "wanted float32, float64, float16 or bfloat16, got ", dtype_name(type));
  return type;
}

}  // namespace lirank
