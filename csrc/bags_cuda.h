// Ids, offsets and weights of a look-up, checked as far as the host can see without waiting:
// shapes, dtypes, devices. Values are checked by the kernels (kernels/errors.cuh).
#pragma once
#include "bags.cuh"
#include "cuda_call.h"

namespace lirank {

// Holds the tensors that the pointers point into.
struct DeviceBags {
  Tensor ids, offsets, weights;
  gpu::Bags bags;
};

inline void check_mode(const char* op, const std::string& mode, const OptionalTensor& weights) {
  LIRANK_CHECK(mode == "sum" || mode == "mean", op, "mode", "wanted 'sum' or 'mean', got '", mode,
               "'");
  LIRANK_CHECK(!(weights && mode == "mean"), op, "per_sample_weights",
               "wanted mode 'sum' with weights, got '", mode, "'");
}

inline void read_offsets(const char* op, const char* name, const OptionalTensor& offsets,
                         bool include_last, DeviceBags& d) {
  gpu::Bags& b = d.bags;
  const Tensor& ids = d.ids;
  if (!offsets) {
    LIRANK_CHECK(ids.dim() == 1 || ids.dim() == 2, op, name,
                 "wanted 1 or 2 dimensions without offsets, got shape ", shape(ids));
    LIRANK_CHECK(!include_last, op, "include_last_offset", "wanted offsets with it, got None");
    b.bags = ids.size(0);
    b.fixed = ids.dim() == 1 ? 1 : ids.size(1);
    return;
  }
  check_dim(op, name, ids, 1);
  check_index_dtype(op, "offsets", *offsets);
  check_dim(op, "offsets", *offsets, 1);
  check_together(op, "offsets", *offsets, ids);
  LIRANK_CHECK(!include_last || offsets->numel() > 0, op, "offsets",
               "wanted at least one with include_last_offset, got shape ", shape(*offsets));
  d.offsets = to_contiguous(*offsets);
  b.offsets = d.offsets.const_data_ptr();
  b.offset_count = d.offsets.numel();
  b.wide_offsets = offsets->scalar_type() == ScalarType::Long;
  b.bags = b.offset_count - (include_last ? 1 : 0);
}

inline void read_weights(const char* op, const char* name, const OptionalTensor& weights,
                         ScalarType type, DeviceBags& d) {
  if (!weights) return;
  check_floating(op, "per_sample_weights", *weights);
  check_together(op, "per_sample_weights", *weights, d.ids);
  bool same = weights->dim() == d.ids.dim();
  for (int64_t i = 0; same && i < d.ids.dim(); ++i) same = weights->size(i) == d.ids.size(i);
  LIRANK_CHECK(same, op, "per_sample_weights", "wanted the shape of ", name, " ", shape(d.ids),
               ", got ", shape(*weights));
  d.weights = as_type(*weights, type);
  d.bags.weights = d.weights.const_data_ptr();
}

// `name` is what the op calls its ids; `beside` the tensor on whose device they have to lie.
inline DeviceBags read_device_bags(const char* op, const char* name, const Tensor& ids,
                                   const OptionalTensor& offsets, const std::string& mode,
                                   const OptionalTensor& weights, bool include_last,
                                   ScalarType weight_type, const Tensor& beside) {
  check_mode(op, mode, weights);
  check_index_dtype(op, name, ids);
  check_together(op, name, ids, beside);
  DeviceBags d;
  d.ids = to_contiguous(ids);
  d.bags.ids = d.ids.const_data_ptr();
  d.bags.wide_ids = ids.scalar_type() == ScalarType::Long;
  d.bags.count = ids.numel();
  d.bags.mean = mode == "mean";
  read_offsets(op, name, offsets, include_last, d);
  read_weights(op, name, weights, weight_type, d);
  return d;
}

inline gpu::Element element_of(ScalarType type) {
  return type == ScalarType::Double     ? gpu::Element::float64
         : type == ScalarType::Half     ? gpu::Element::float16
         : type == ScalarType::BFloat16 ? gpu::Element::bfloat16
                                        : gpu::Element::float32;
}

inline void check_output_dtype(const char* op, ScalarType type) {
  LIRANK_CHECK(is_floating(type), op, "output_dtype",
               "wanted float32, float64, float16 or bfloat16, got ", dtype_name(type));
}

// Kernels write three of the four; float64 is widened from float32, in which they sum.
inline ScalarType written_type(ScalarType output) {
  return output == ScalarType::Double ? ScalarType::Float : output;
}

}  // namespace lirank
