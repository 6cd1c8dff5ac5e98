// The layers of a residual cross net as arguments, and the ops that other ops call.
#pragma once
#include "cross_host.h"

#include <cmath>
#include <vector>

namespace lirank {

using Tensors = std::vector<Tensor>;

// The layers of both stacks, checked against x.
struct NetArguments {
  std::vector<OptionalTensor> biases;  // what the arguments refer to
  std::vector<LayerArguments> low_rank_layers, attention_layers;

  NetArguments(const char* op, const Tensor& x, const Tensors& low_rank, const Tensors& attention,
               double temperature, const Tensors& log_temperatures, int64_t token_dim, bool skip) {
    biases.reserve(low_rank.size() + attention.size());
    for (size_t i = 0; i < low_rank.size(); i += 3) {
      biases.emplace_back(low_rank[i + 2]);
      low_rank_layers.push_back({x, x, {{"v", &low_rank[i]}}, low_rank[i + 1], biases.back()});
      check_arguments(op, low_rank_layers.back());
    }
    for (size_t i = 0; i < attention.size(); i += 5) {
      biases.emplace_back(attention[i + 4]);
      double scale = temperature;
      if (!log_temperatures.empty()) {
        const Tensor t = as_float_type(log_temperatures[i / 5], compute_type(x.scalar_type()));
        const bool is_double = t.scalar_type() == ScalarType::Double;
        scale = std::exp(is_double ? t.const_data_ptr<double>()[0] : t.const_data_ptr<float>()[0]);
      }
      attention_layers.push_back(
          {x,
           x,
           {{"q", &attention[i]}, {"k", &attention[i + 1]}, {"v", &attention[i + 2]}},
           attention[i + 3],
           biases.back(),
           scale,
           token_dim,
           skip});
      check_arguments(op, attention_layers.back());
    }
  }
};

Tensor residual_cross_net(const Tensor& x, const Tensors low_rank, const Tensors attention,
                          double temperature, const Tensors log_temperatures, int64_t token_dim,
                          bool skip, int64_t merge);
Tensor low_rank_cross(const Tensor& x0, const Tensor& x, const Tensor& v, const Tensor& u,
                      const OptionalTensor& bias);
Tensor attention_cross(const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& u, const OptionalTensor& bias,
                       double temperature, int64_t token_dim, bool skip);

}  // namespace lirank
