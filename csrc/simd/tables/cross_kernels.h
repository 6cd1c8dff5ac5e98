// What the Torch side of the cross layers hands to the kernels, and the kernels: see
// simd/cross_*.h.
#pragma once
#include "cross_chebyshev_table.h"
#include "library/dispatch.h"

#include <cstdint>

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
  const Layer<T>* low_rank;
  const Layer<T>* attention;
  int64_t num_low_rank, num_attention, d;
  int64_t merge;
};

// What the forward of training keeps: the first `columns` of the projections' projections * r,
// and with attention what goes into u, (B, r). Null pointers: nothing is kept.
template <typename T>
struct SavedActivations {
  T *hidden, *mixed;
  int64_t columns;
};

// A layer's weights in panels, see simd/cross_rows.h: each projection transposed, `in_size`
// elements, and u transposed; for the backward u and all projections as they lie.
template <typename T>
struct WeightPanels {
  const T *in, *u, *u_straight, *in_straight;
  int64_t in_size;
};

// One matrix to be packed: (rows, columns), or transposed (columns, rows), as rows
// [offset, offset + rows) of panels that are k deep.
template <typename T>
struct PackJob {
  const T* from;
  int64_t rows, columns, k, offset;
  bool transposed;
  T* to;
};

// Inputs and outputs of the backward. hidden: the first `columns` of the projections, the others
// are computed again. into_u (B, r): what was multiplied by u; where it is p, the first pass writes
// it. dh (B, projections * r) serves the second pass.
template <typename T>
struct Backward {
  const T *grad, *x0, *x, *hidden, *into_u;
  int64_t columns;
  T *grad_x0, *grad_x;
  T *p, *dh;
};

template <typename T>
struct WeightGradient {
  T* in[3];
  T *u, *bias;
};

// Elements of scratch for the attention of a sample, r numbers in tokens of width t.
inline int64_t attention_scratch(int64_t r, int64_t t) {
  const int64_t lanes = 16, padded = (r / t + lanes - 1) / lanes * lanes;
  return t == 1 ? (kMostNodes + 7) * padded : 4 * t * padded + 2 * padded;
}

// The attention of one sample of a layer: from h (q, k, v, each r) to what goes into u, and from
// that one's gradient g to dh. rows: of samples [begin, end) of (B, r), tokens of width t.
LIRANK_EACH_ISA(template <typename T> struct CrossAttention {
  static void sample(const Layer<T>& layer, const T* h, T* out, T* scratch);
  static void sample_backward(const Layer<T>& layer, const T* h, const T* g, T* dh, T* scratch);
  static void rows(const T* q, const T* k, const T* v, int64_t begin, int64_t end, int64_t r,
                   int64_t t, T scale, T* out, T* scratch);
  static void rows_backward(const T* g, const T* q, const T* k, const T* v, int64_t begin,
                            int64_t end, int64_t r, int64_t t, T scale, T inverse, T* gq, T* gk,
                            T* gv, T* scratch);
};)

// Layers and nets on tiles of samples, `vectors` vectors of `lanes` samples each.
LIRANK_EACH_ISA(template <typename T> struct CrossTiles {
  static int64_t lanes();
  static int64_t most_vectors();
  static int64_t scratch(int64_t d, int64_t r, int64_t token_dim, int projections, int64_t samples);
  static void layer(const Layer<T>& layer, const T* x0, const T* x, int64_t begin, int64_t end,
                    int vectors, T* y, SavedActivations<T> kept, T* scratch);
  static void net(const Net<T>& net, const T* x, int64_t begin, int64_t end, int vectors, T* y,
                  T* scratch);
};)

// The same on a few samples.
LIRANK_EACH_ISA(template <typename T> struct CrossFewSamples {
  static int64_t scratch(int64_t d, int64_t r, int64_t token_dim, int projections, int64_t samples);
  static void layer(const Layer<T>& layer, const T* x0, const T* x, int64_t begin, int64_t end,
                    T* y, SavedActivations<T> kept, T* scratch);
  static void net(const Net<T>& net, const T* x, int64_t begin, int64_t end, T* y, T* scratch);
};)

// One layer on many samples, beside packed weights.
LIRANK_EACH_ISA(template <typename T> struct CrossRows {
  static int64_t panel();  // columns
  static int64_t packed_size(int64_t columns, int64_t k);
  static void pack(const PackJob<T>& one, int64_t part, int64_t parts);
  static int64_t scratch(int64_t d, int64_t r, int64_t token_dim, int projections, int64_t samples);
  static void layer(const Layer<T>& layer, const WeightPanels<T>& w, const T* x0, const T* x,
                    int64_t begin, int64_t end, int64_t batch, T* y, SavedActivations<T> kept,
                    T* scratch);
};)

// Its backward: `rows` first, then `weights` for every block of at most `columns` columns.
LIRANK_EACH_ISA(template <typename T> struct CrossBackward {
  static void rows(const Layer<T>& layer, const WeightPanels<T>& w, const Backward<T>& io,
                   int64_t begin, int64_t end, int64_t batch, T* scratch);
  static int64_t columns();
  static int64_t weights_scratch(int64_t r, int projections);
  static void weights(const Layer<T>& layer, const Backward<T>& io, int64_t batch, int64_t j0,
                      int64_t width, const WeightGradient<T>& out, T* scratch);
};)

}  // namespace lirank
