// The ids of a call in the order of their rows in the hashed tables, on CUDA tensors, for what sums
// or applies the gradients of runs of one row.
#pragma once
#include "cuda/cuda_call.h"
#include "hashed_embedding.cuh"
#include "hashed_embedding_backward_ops.h"
#include "sort.cuh"

namespace lirank {

using gpu::RunsParams;

// Entries in the order of their rows in the two tables of one kind: 32-bit rows and positions,
// first those of table b.
struct Sorted {
  Tensor rows, positions;
  uint32_t row_bits;
};

// What the four gradients share. Holds the tensors that the pointers point into.
struct Gradients {
  BagTensors ids;
  Tensor grad, rows, all_positions, bag_of, partials;
  int64_t heights[4];
  RunsParams params;
};

inline Gradients read_gradients(const OnDevice& on, const HashedGradientCall& call) {
  Gradients g{call.bags, to_contiguous(call.grad), {}, {}, {}, {}, {}};
  for (int t = 0; t < 4; ++t) g.heights[t] = call.heights[t];
  RunsParams& p = g.params;
  p.bags = call.bags.view;
  p.rule = call.rule;
  p.count = p.bags.id_count;
  p.grad = g.grad.const_data_ptr();
  p.dim = call.grad.size(1);
  p.dtype = dtype_of(call.grad.scalar_type());
  p.errors = on.errors;
  return g;
}

inline int64_t chunks_of(int64_t count) { return (count + gpu::kChunk - 1) / gpu::kChunk; }

// The workspace (RunsParams in kernels/hashed_embedding.cuh states it), and the bag of every id.
inline void start(const OnDevice& on, Gradients& g) {
  RunsParams& p = g.params;
  const ScalarType type = compute_type(g.grad.scalar_type());
  g.rows = new_tensor(g.ids.ids, {2, p.count}, ScalarType::Int);
  g.all_positions = new_tensor(g.ids.ids, {2, p.count}, ScalarType::Int);
  g.bag_of = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.partials = new_tensor(g.grad, {chunks_of(p.count), 2, p.dim}, type);
  p.rows = (uint32_t*)g.rows.mutable_data_ptr<int32_t>();
  p.all_positions = g.all_positions.mutable_data_ptr<int32_t>();
  p.bag_of = g.bag_of.mutable_data_ptr<int32_t>();
  p.partials = g.partials.mutable_data_ptr();
  if (p.count > 0) on.check(cudaMemsetAsync(p.bag_of, 0xff, p.count * sizeof(int32_t), on.stream));
  on.check(gpu::hashed_bags_launch(p, on.stream));
}

inline int bits_of(int64_t rows) {
  int bits = 1;
  while (bits < 32 && int64_t(1) << bits < rows) ++bits;
  return bits;
}

inline void sort_list(const OnDevice& on, const Gradients& g, Sorted& sorted, int64_t from,
                      int64_t count, int bits) {
  size_t bytes = 0;
  on.check(gpu::sort_work_bytes((int)count, bits, &bytes));
  Tensor work = new_tensor(g.ids.ids, {(int64_t)bytes}, ScalarType::Byte);
  const RunsParams& p = g.params;
  on.check(gpu::sort_launch({p.rows + from, p.all_positions + from,
                             (uint32_t*)sorted.rows.mutable_data_ptr<int32_t>() + from,
                             sorted.positions.mutable_data_ptr<int32_t>() + from, (int)count, bits,
                             work.mutable_data_ptr(), bytes},
                            on.stream));
}

// The ids in the order of their rows in both quotient or both remainder tables; positions rise
// within a row. One sort serves both tables: at a million ids each sort of one table leaves most of
// the GPU idle. Its keys have one bit more, which tells the tables apart. Where 32 bits have no
// room for it, or 31 bits none for twice the ids, each table has its own sort.
inline Sorted sort_rows(const OnDevice& on, Gradients& g, bool remainders) {
  RunsParams& p = g.params;
  const int bits = bits_of(g.heights[remainders]);
  const bool together = bits % 8 != 0 && p.count < int64_t(1) << 30;
  Sorted sorted{new_tensor(g.ids.ids, {2, p.count}, ScalarType::Int),
                new_tensor(g.ids.ids, {2, p.count}, ScalarType::Int),
                bits < 32 ? (uint32_t(1) << bits) - 1 : ~uint32_t(0)};
  if (p.count == 0) return sorted;
  p.remainders = remainders;
  p.half = together ? uint32_t(1) << bits : 0;
  on.check(gpu::hashed_rows_launch(p, on.stream));
  if (together) {
    sort_list(on, g, sorted, 0, 2 * p.count, bits + 1);
  } else {
    sort_list(on, g, sorted, 0, p.count, bits);
    sort_list(on, g, sorted, p.count, p.count, bits);
  }
  return sorted;
}

// Those of table b (half 0) or c (half 1).
inline RunsParams runs_of(const Gradients& g, const Sorted& sorted, int half) {
  RunsParams p = g.params;
  p.sorted = (const uint32_t*)sorted.rows.const_data_ptr<int32_t>() + half * p.count;
  p.positions = sorted.positions.const_data_ptr<int32_t>() + half * p.count;
  p.row_bits = sorted.row_bits;
  return p;
}

}  // namespace lirank
