// CPU tensors to another floating type, without aten::to's way through the dispatcher.
#pragma once
#include "library/checks.h"

namespace lirank {

inline bool is_half_precision(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16;
}

// Contiguous and of `type`; the tensor itself where it is both.
Tensor as_float_type(const Tensor& t, ScalarType type);

}  // namespace lirank
