#include "library/convert.h"

#include "simd/tables/convert_kernels.h"

namespace lirank {
namespace {

// Elements of a task: about 10 microseconds of one core.
constexpr int64_t kElements = 1 << 16;

}  // namespace

Tensor as_float_type(const Tensor& t, ScalarType type) {
  const ScalarType from = t.scalar_type();
  const bool widens = is_half_precision(from) && type == ScalarType::Float;
  const bool narrows = from == ScalarType::Float && is_half_precision(type);
  if (!t.is_contiguous() || !(widens || narrows)) return as_type(t, type);
  Tensor out = empty_like_type(t, type);
  const bool bfloat = (widens ? from : type) == ScalarType::BFloat16;
  const char* source = (const char*)t.const_data_ptr();
  char* to = (char*)out.mutable_data_ptr();
  torch::stable::parallel_for(0, t.numel(), kElements, [&](int64_t begin, int64_t end) {
    if (widens)
      LIRANK_DISPATCH(widen_numbers, source + 2 * begin, bfloat, end - begin, (float*)to + begin);
    else
      LIRANK_DISPATCH(narrow_numbers, (const float*)source + begin, end - begin, bfloat,
                      to + 2 * begin);
  });
  return out;
}

}  // namespace lirank
