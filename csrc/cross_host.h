// Arguments of a cross layer on the Torch side: checks, contiguous data of one type, memory.
#pragma once
#include "library/checks.h"
#include "library/convert.h"
#include "simd/tables/cross_kernels.h"

#include <cmath>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

namespace lirank {

// Below it the scores of ordinary inputs leave float32's range.
constexpr double kLeastTemperature = 1e-30;

template <typename T>
T score_inverse(double temperature, int64_t token_dim) {
  return (T)(1.0 / (temperature * std::sqrt((double)token_dim)));
}
template <typename T>
T score_scale(double temperature, int64_t token_dim) {
  return (T)(1.44269504088896340736 / (temperature * std::sqrt((double)token_dim)));
}

inline void check_same_shape(const char* op, const char* argument, const Tensor& t,
                             const Tensor& like) {
  bool same = t.dim() == like.dim();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  LIRANK_CHECK(same, op, argument, "wanted shape ", shape(like), ", got ", shape(t));
}

// Working memory of all tasks, taken before the parallel loop: an exception must not leave it.
template <typename T>
class Scratch {
 public:
  Scratch(int64_t tasks, int64_t each) : each_((each + 63) / 64 * 64) {
    const size_t bytes = (size_t)(tasks * each_) * sizeof(T);
    memory_ = static_cast<T*>(std::aligned_alloc(64, bytes > 0 ? bytes : 64));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }
  T* of(int64_t task) const { return memory_ + task * each_; }

 private:
  int64_t each_;
  T* memory_;
};

struct LayerArguments {
  const Tensor &x0, &x;
  std::vector<std::pair<const char*, const Tensor*>> kernels;  // v, or q, k, v
  const Tensor& u;
  const OptionalTensor& bias;
  double temperature = 1.0;
  int64_t token_dim = 1;
  bool skip = false;
};

inline void check_matrix(const char* op, const char* argument, const Tensor& t, int64_t rows,
                         int64_t columns, ScalarType type) {
  check_same_dtype(op, argument, t, type);
  check_dim(op, argument, t, 2);
  LIRANK_CHECK(t.size(0) == rows && t.size(1) == columns, op, argument, "wanted shape (", rows,
               ", ", columns, "), got ", shape(t));
}

inline void check_arguments(const char* op, const LayerArguments& a) {
  check_floating(op, "x0", a.x0);
  check_dim(op, "x0", a.x0, 2);
  const ScalarType type = a.x0.scalar_type();
  const int64_t d = a.x0.size(1);
  LIRANK_CHECK(d > 0, op, "x0", "wanted a width of at least 1, got ", shape(a.x0));
  check_matrix(op, "x", a.x, a.x0.size(0), d, type);
  check_dim(op, "u", a.u, 2);
  const int64_t r = a.u.size(1);
  check_matrix(op, "u", a.u, d, r, type);
  for (const auto& [name, t] : a.kernels) check_matrix(op, name, *t, r, d, type);
  LIRANK_CHECK(r > 0, op, "u", "wanted a rank of at least 1, got ", shape(a.u));
  if (a.bias) {
    check_same_dtype(op, "bias", *a.bias, type);
    LIRANK_CHECK(a.bias->dim() == 1 && a.bias->size(0) == d, op, "bias", "wanted shape (", d,
                 ",), got ", shape(*a.bias));
  }
  LIRANK_CHECK(a.temperature >= kLeastTemperature, op, "temperature",
               "wanted a number of 1e-30 or more, got ", a.temperature);
  LIRANK_CHECK(a.token_dim > 0 && r % a.token_dim == 0, op, "token_dim",
               "wanted a divisor of the rank ", r, ", got ", a.token_dim);
}

// A layer but for its weights.
template <typename T>
Layer<T> shape_of_layer(const LayerArguments& a) {
  Layer<T> layer{};
  layer.projections = (int)a.kernels.size();
  layer.d = a.x0.size(1);
  layer.r = a.u.size(1);
  layer.token_dim = a.token_dim;
  layer.scale = score_scale<T>(a.temperature, a.token_dim);
  layer.inverse = score_inverse<T>(a.temperature, a.token_dim);
  layer.skip = a.skip;
  return layer;
}

// Contiguous weights of the computing type, and the layer that points into them.
template <typename T>
struct LayerWeights {
  std::vector<Tensor> tensors;
  Layer<T> layer;
  ScalarType type;

  explicit LayerWeights(const LayerArguments& a)
      : layer(shape_of_layer<T>(a)), type(compute_type(a.x0.scalar_type())) {
    tensors.reserve(7);
    for (int i = 0; i < layer.projections; ++i) layer.in[i] = hold(*a.kernels[i].second);
    layer.u = hold(a.u);
    layer.bias = a.bias ? hold(*a.bias) : nullptr;
  }
  const T* hold(const Tensor& t) {
    tensors.push_back(as_float_type(t, type));
    return tensors.back().template const_data_ptr<T>();
  }
};

// The same with x0 and x.
template <typename T>
struct LayerCall : LayerWeights<T> {
  const T *x0, *x;

  explicit LayerCall(const LayerArguments& a) : LayerWeights<T>(a) {
    x0 = this->hold(a.x0);
    x = a.x.data_ptr() == a.x0.data_ptr() && a.x.is_contiguous() && a.x0.is_contiguous()
            ? x0
            : this->hold(a.x);
  }
};

}  // namespace lirank
