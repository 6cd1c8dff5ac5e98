// Cross layers in bfloat16 on processors with bfloat16 products (see bf16_products()). The caller
// has checked the arguments.
#pragma once
#include "cross_host.h"

namespace lirank {

// Returns the result. With `keep` it also returns the first `columns` of the projections,
// (B, columns), and for attention the input of u, (B, r).
std::vector<Tensor> bf16_layer(const LayerArguments& a, bool keep, int64_t columns);

// Both stacks of residual_cross_net on x, (B, d) or concatenated (B, 2d).
Tensor bf16_net(const Tensor& x, const std::vector<LayerArguments>& low_rank,
                const std::vector<LayerArguments>& attention, int64_t merge);

}  // namespace lirank
