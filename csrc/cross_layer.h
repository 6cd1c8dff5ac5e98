// What the Torch side of the cross layers hands to the kernels.
#pragma once
#include "checks.h"
#include "cross_chebyshev_table.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace lirank {

// One layer. projections: 1 (low rank) or 3 (attention: q, k, v), each (r, d); u: (d, r).
template <typename T>
struct Layer {
  const T* in[3];
  int projections;
  const T* u;
  const T* bias;  // or null
  int64_t d, r, token_dim;
  T scale, inverse;  // log2(e) / s and 1 / s with s = temperature * sqrt(token_dim)
  bool skip;
};

// Two stacks on the same input. merge: 0 sum, 1 mean, 2 concatenation.
template <typename T>
struct Net {
  const Layer<T>* low;
  const Layer<T>* high;
  int64_t lows, highs, d;
  int64_t merge;
};

// What the forward of training keeps: the first `columns` of the projections' projections * r,
// and with attention what goes into u, (B, r). Null pointers: nothing is kept.
template <typename T>
struct Kept {
  T *hidden, *mixed;
  int64_t columns;
};

// A layer's weights in panels, see simd/cross_rows.h: each projection turned, `in_size` elements,
// and u turned; for the backward u and all projections as they lie.
template <typename T>
struct Packed {
  const T *in, *u, *u_straight, *in_straight;
  int64_t in_size;
};

// One matrix to be packed: (rows, columns), or turned (columns, rows), as rows
// [offset, offset + rows) of panels that are k deep.
template <typename T>
struct Packing {
  const T* from;
  int64_t rows, columns, k, offset;
  bool turned;
  T* to;
};

// Inputs and outputs of the backward. hidden: the first `columns` of the projections, the others
// are computed again. low (B, r): what went into u; where it is p, the first pass writes it. dh
// (B, projections * r) serves the second pass.
template <typename T>
struct Backward {
  const T *grad, *x0, *x, *hidden, *low;
  int64_t columns;
  T *grad_x0, *grad_x;
  T *p, *dh;
};

template <typename T>
struct WeightGradient {
  T* in[3];
  T *u, *bias;
};

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

}  // namespace lirank
