// What residual_cross_score hands to its kernels, and the kernels: see simd/cross_score.h.
#pragma once
#include "cross_score_plan.h"
#include "simd/tables/cross_kernels.h"

#include <cstdint>

namespace lirank {

// The net of all requests: layers[0] low rank, layers[1] attention, each of width d, of which the
// first d_u columns are a request's. first[s]: number of a stack's first layer among all layers.
// padded[i]: the u half of layer i's u, (d_u, r) in rows of whole vectors, `width[i]` numbers.
template <typename T>
struct ScoreNet {
  const Layer<T>* layers[2];
  int64_t counts[2], first[2];
  int64_t d, d_u, merge;
  const T* weight;  // (m, out_dim), or null
  const T* bias;    // (m,), or null
  int64_t m;
  const T* const* padded;
  const int64_t* width;
};

// What is folded of one request. Index i * layers + j: of layer i by layer j of the same stack.
template <typename T>
struct Folded {
  const T* u;         // (d_u,)
  bool inner[2];      // whether the layers of a stack are folded, so that no u half is needed
  bool outer;         // whether the weight is
  T* const* shift;    // k_i (projections * r); beyond a stack's first layer only where folded
  T* const* inner_m;  // M_ij (projections * r_i, width[j])
  T* const* outer_m;  // the weight's part by p_j (m, width[j])
  T* constant;        // (m,)
};

// Rows of a matrix that are folded at a time.
constexpr int64_t kFoldRows = 48;

LIRANK_EACH_ISA(template <typename T> struct CrossScore {
  static int64_t lanes();
  static int64_t most_vectors();
  static int64_t scratch(const ScoreNet<T>& net, int64_t samples);
  static int64_t fold_scratch(const ScoreNet<T>& net);
  // The shifts of all layers and the constant.
  static void shifts(const ScoreNet<T>& net, const Folded<T>& f, T* scratch);
  // Rows [begin, end) of the M of layer i of a stack by all layers before it.
  static void inner(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t i, int64_t begin,
                    int64_t end, T* scratch);
  // Rows [begin, end) of the weight's parts by all layers of a stack.
  static void outer(const ScoreNet<T>& net, const Folded<T>& f, int stack, int64_t begin,
                    int64_t end, T* scratch);
  // `rows` candidates (d - d_u) of the request into y, (rows, m) or (rows, out_dim).
  static void tile(const ScoreNet<T>& net, const Folded<T>& f, const T* items, int64_t rows,
                   int vectors, T* y, T* scratch);
  // The same for a few.
  static void few(const ScoreNet<T>& net, const Folded<T>& f, const T* items, int64_t rows, T* y,
                  T* scratch);
};)

}  // namespace lirank
