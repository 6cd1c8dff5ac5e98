// Checks and small helpers shared by the Torch side of every op.
//
// Every error reads "lirank::op: argument 'name': wanted ..., got ...". The Python checks
// (lirank_ext/library/checks.py) raise the same text, so an error reads the same in eager, compiled
// and reference runs.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "library/huge_pages.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch before 2.13 has the macro under its older name
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace lirank {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename... Parts>
[[noreturn]] void refuse(const char* op, const char* argument, const Parts&... parts) {
  std::ostringstream text;
  text << "lirank::" << op << ": argument '" << argument << "': ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// LIRANK_CHECK(condition, op, argument, "wanted ", ..., ", got ", ...)
#define LIRANK_CHECK(condition, op, argument, ...)                                      \
  do {                                                                                  \
    if (__builtin_expect(!(condition), 0)) ::lirank::refuse(op, argument, __VA_ARGS__); \
  } while (0)

inline std::string shape(const Tensor& t) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << (t.dim() == 1 ? ",)" : ")");
  return text.str();
}

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return "another dtype";
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline void check_floating(const char* op, const char* argument, const Tensor& t) {
  LIRANK_CHECK(is_floating(t.scalar_type()), op, argument,
               "wanted float32, float64, float16 or bfloat16, got ", dtype_name(t.scalar_type()));
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& t,
                             ScalarType wanted) {
  LIRANK_CHECK(t.scalar_type() == wanted, op, argument, "wanted dtype ", dtype_name(wanted),
               ", got ", dtype_name(t.scalar_type()));
}

inline void check_dim(const char* op, const char* argument, const Tensor& t, int64_t dims) {
  LIRANK_CHECK(t.dim() == dims, op, argument, "wanted ", dims, " dimensions, got shape ", shape(t));
}

inline void check_index_dtype(const char* op, const char* argument, const Tensor& t) {
  LIRANK_CHECK(t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long, op,
               argument, "wanted torch.int32 or torch.int64, got ", dtype_name(t.scalar_type()));
}

// Every tensor of a call has to lie where the first does: a kernel would read another device's
// memory, or the host's.
inline void check_together(const char* op, const char* argument, const Tensor& t,
                           const Tensor& first) {
  LIRANK_CHECK(t.is_cuda() == first.is_cuda() && t.get_device_index() == first.get_device_index(),
               op, argument, "wanted it on the device of the first tensor, got another");
}

// Memory that could not be had. The Python functions put the op before this text.
[[noreturn]] inline void refuse_memory(const int64_t* sizes, int64_t dims, ScalarType type) {
  std::ostringstream text;
  text << "out of memory: no room for a tensor of shape (";
  for (int64_t i = 0; i < dims; ++i) text << (i ? ", " : "") << sizes[i];
  text << (dims == 1 ? ",)" : ")") << " and dtype " << dtype_name(type);
  throw std::runtime_error(text.str());
}

// A copy that PyTorch makes. On a CPU only want of memory keeps it from one, and its own message
// would name a line of its source; on a GPU it may be the first to hear of an earlier failure.
template <typename Copy>
Tensor copied(const Tensor& t, ScalarType type, const Copy& copy) {
  if (t.is_cuda()) return copy();
  try {
    return copy();
  } catch (const std::exception&) {
    refuse_memory(t.sizes().data(), t.dim(), type);
  }
}

// Ids that are hashed: of 32 bits too, as the same numbers.
inline Tensor checked_ids(const char* op, const Tensor& ids) {
  if (ids.scalar_type() == ScalarType::Int)
    return copied(ids, ScalarType::Long, [&] { return torch::stable::to(ids, ScalarType::Long); });
  LIRANK_CHECK(ids.scalar_type() == ScalarType::Long, op, "ids",
               "wanted torch.int32 or torch.int64, got ", dtype_name(ids.scalar_type()));
  return ids;
}

inline Tensor to_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  return copied(t, t.scalar_type(), [&] { return torch::stable::contiguous(t); });
}

// Half precision is computed in float32: inputs are widened once, the result narrowed once.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor as_type(const Tensor& t, ScalarType type) {
  if (t.scalar_type() == type) return to_contiguous(t);
  return to_contiguous(copied(t, type, [&] { return torch::stable::to(t, type); }));
}

// From this size on glibc serves every allocation with a fresh mmap, so every page is faulted in
// again.
constexpr int64_t kMappedAnew = 32 << 20;

// An uninitialized contiguous CPU tensor. This takes 0.4 us and torch::stable::empty 1.2 us,
// because the latter looks up `aten::empty` in the dispatcher, under a lock, in every call.
inline Tensor new_tensor(const int64_t* sizes, int64_t dims, ScalarType type) {
  std::vector<int64_t> strides((size_t)dims);
  int64_t step = 1;
  for (int64_t i = dims; i-- > 0;) {
    strides[(size_t)i] = step;
    // An item has up to 8 bytes.
    if (__builtin_mul_overflow(step, sizes[i] > 0 ? sizes[i] : 1, &step) || step >> 60)
      refuse_memory(sizes, dims, type);
  }
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(dims, sizes, strides.data(), static_cast<int32_t>(type),
                               aoti_torch_device_type_cpu(), 0, &made))
    refuse_memory(sizes, dims, type);
  Tensor out(made);
  const int64_t bytes = dims > 0 ? sizes[0] * strides[0] * (int64_t)out.element_size() : 0;
  if (bytes >= kMappedAnew) use_huge_pages(out.const_data_ptr(), bytes);
  return out;
}

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) {
  return new_tensor(sizes.begin(), (int64_t)sizes.size(), type);
}

inline Tensor empty_like_type(const Tensor& t, ScalarType type) {
  return new_tensor(t.sizes().data(), t.dim(), type);
}

}  // namespace lirank
