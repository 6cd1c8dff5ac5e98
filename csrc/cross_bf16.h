// Cross layers in bfloat16 on processors that multiply bfloat16 (see bf16_products()).
// The arguments are checked already.
#pragma once
#include "cross_host.h"

namespace lirank {

// The result; where `keep` is set also the first `columns` of the projections, (B, columns), and
// with attention what goes into u, (B, r).
std::vector<Tensor> bf16_layer(const Arguments& a, bool keep, int64_t columns);

// Both stacks of residual_cross_net on x, (B, d) or concatenated (B, 2d).
Tensor bf16_net(const Tensor& x, const std::vector<Arguments>& low,
                const std::vector<Arguments>& high, int64_t merge);

}  // namespace lirank
