// Gradients of hashed tables on CUDA tensors. Sparse ones wait for the device, because the number
// of rows decides how large they are. With include_last_offset they also wait for the end of the
// last bag, which decides how many ids count.
#include "hashed_embedding_backward_ops.h"

#include "cuda_call.h"
#include "hashed_embedding.cuh"
#include "sort.cuh"

namespace lirank {
namespace {

using gpu::RunsParams;

// Entries in the order of their rows in one table: 32-bit rows and positions.
struct Sorted {
  Tensor rows, positions;
};

// What the four gradients share. Holds the tensors that the pointers point into.
struct Gradients {
  BagTensors ids;
  Tensor grad, rows, all_positions, bag_of, partials;
  int64_t heights[4];
  RunsParams params;
};

Gradients read_gradients(const OnDevice& on, const HashedGradientCall& call) {
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

int64_t chunks_of(int64_t count) { return (count + gpu::kChunk - 1) / gpu::kChunk; }

// The workspace (RunsParams in kernels/hashed_embedding.cuh states it), and the bag of every id.
void start(const OnDevice& on, Gradients& g) {
  RunsParams& p = g.params;
  const ScalarType type = compute_type(g.grad.scalar_type());
  g.rows = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.all_positions = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.bag_of = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.partials = new_tensor(g.grad, {chunks_of(p.count), 2, p.dim}, type);
  p.rows = (uint32_t*)g.rows.mutable_data_ptr<int32_t>();
  p.all_positions = g.all_positions.mutable_data_ptr<int32_t>();
  p.bag_of = g.bag_of.mutable_data_ptr<int32_t>();
  p.partials = g.partials.mutable_data_ptr();
  if (p.count > 0) on.check(cudaMemsetAsync(p.bag_of, 0xff, p.count * sizeof(int32_t), on.stream));
  on.check(gpu::hashed_bags_launch(p, on.stream));
}

int bits_of(int64_t rows) {
  int bits = 1;
  while (bits < 32 && int64_t(1) << bits < rows) ++bits;
  return bits;
}

// The ids in the order of their rows in one table; positions rise within a row.
Sorted sort_rows(const OnDevice& on, Gradients& g, int table) {
  RunsParams& p = g.params;
  Sorted entries{new_tensor(g.ids.ids, {p.count}, ScalarType::Int),
                 new_tensor(g.ids.ids, {p.count}, ScalarType::Int)};
  if (p.count == 0) return entries;
  p.table = table;
  on.check(gpu::hashed_rows_launch(p, on.stream));
  const int count = (int)p.count, bits = bits_of(g.heights[table]);
  size_t bytes = 0;
  on.check(gpu::sort_work_bytes(count, bits, &bytes));
  Tensor work = new_tensor(g.ids.ids, {(int64_t)bytes}, ScalarType::Byte);
  on.check(gpu::sort_launch(
      {p.rows, p.all_positions, (uint32_t*)entries.rows.mutable_data_ptr<int32_t>(),
       entries.positions.mutable_data_ptr<int32_t>(), count, bits, work.mutable_data_ptr(), bytes},
      on.stream));
  return entries;
}

void sum_rows(const OnDevice& on, RunsParams p, const Sorted& entries, Tensor& out) {
  p.sorted = (const uint32_t*)entries.rows.const_data_ptr<int32_t>();
  p.positions = entries.positions.const_data_ptr<int32_t>();
  p.out = out.mutable_data_ptr();
  on.check(gpu::hashed_runs_launch(p, on.stream));
}

Tensor dense_gradient(const OnDevice& on, Gradients& g, int table) {
  Tensor out = torch::stable::new_zeros(g.grad, {g.heights[table], g.params.dim});
  sum_rows(on, g.params, sort_rows(on, g, table), out);
  return out;
}

// The number of ids before the end of the last bag. Later ids must not add rows. If the end is a
// number on the device, the host waits for it once.
int64_t used_ids(const OnDevice& on, const Bags& b, bool include_last) {
  if (b.bag_count == 0) return 0;
  if (b.offsets == nullptr || !include_last) return b.id_count;
  const int64_t at = b.offset_count - 1;
  const int64_t end = b.offsets_are_int64 ? on.read<int64_t>((const int64_t*)b.offsets + at)
                                          : on.read<int32_t>((const int32_t*)b.offsets + at);
  return end < 0 ? 0 : end < b.id_count ? end : b.id_count;  // a bad one is reported by the kernels
}

struct Cuda : CudaBackend {
  static constexpr int kBitsOfPosition = 31;

  static std::tuple<Tensor, Tensor, Tensor, Tensor> dense(const Device& on,
                                                          const HashedGradientCall& call) {
    Gradients g = read_gradients(on, call);
    start(on, g);
    FourTables out;
    for (int t = 0; t < 4; ++t) out[t] = dense_gradient(on, g, t);
    return {out[0], out[1], out[2], out[3]};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sparse(
      const Device& on, const HashedGradientCall& call) {
    Gradients g = read_gradients(on, call);
    if (on.capturing())
      throw std::runtime_error(std::string("lirank::") + on.op +
                               ": sparse gradients wait for the device, which no CUDA graph can "
                               "hold: use sparse=False");
    RunsParams& p = g.params;
    p.count = used_ids(on, p.bags, call.include_last_offset);
    start(on, g);
    // Both quotient tables are counted before the one wait for their numbers of rows.
    const int64_t chunks = chunks_of(p.count);
    Tensor starts = torch::stable::new_zeros(g.ids.ids, {2, chunks + 1});
    Sorted entries[2];
    int64_t rows[2];
    for (int half = 0; half < 2; ++half) {
      entries[half] = sort_rows(on, g, 2 * half);
      RunsParams q = p;
      q.sorted = (const uint32_t*)entries[half].rows.const_data_ptr<int32_t>();
      q.starts = starts.mutable_data_ptr<int64_t>() + half * (chunks + 1);
      on.check(gpu::hashed_count_launch(q, on.stream));
    }
    for (int half = 0; half < 2; ++half)
      rows[half] =
          on.read<int64_t>(starts.const_data_ptr<int64_t>() + (half + 1) * (chunks + 1) - 1);
    Tensor found[2], values[2], remainders[2];
    for (int half = 0; half < 2; ++half) {
      found[half] = new_tensor(g.ids.ids, {rows[half]}, ScalarType::Long);
      values[half] = torch::stable::new_zeros(g.grad, {rows[half], p.dim});
      RunsParams q = p;
      q.starts = starts.mutable_data_ptr<int64_t>() + half * (chunks + 1);
      q.found = found[half].mutable_data_ptr<int64_t>();
      sum_rows(on, q, entries[half], values[half]);
      remainders[half] = dense_gradient(on, g, 2 * half + 1);
    }
    return {found[0], values[0], remainders[0], found[1], values[1], remainders[1]};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_hashed_gradients<Cuda>(m); }

}  // namespace lirank
