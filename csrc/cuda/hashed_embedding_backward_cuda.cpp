// Gradients of hashed tables on CUDA tensors. Sparse ones wait for the device, because the number
// of rows decides how large they are. With include_last_offset they also wait for the end of the
// last bag, which decides how many ids count.
#include "cuda/hashed_embedding_sort_cuda.h"

namespace lirank {
namespace {

using gpu::RunsParams;

void sum_rows(const OnDevice& on, RunsParams p, Tensor& out) {
  p.out = out.mutable_data_ptr();
  on.check(gpu::hashed_runs_launch(p, on.stream));
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
    for (int kind = 0; kind < 2; ++kind) {
      const Sorted sorted = sort_rows(on, g, kind);
      for (int half = 0; half < 2; ++half) {
        Tensor& table = out[2 * half + kind];
        table = torch::stable::new_zeros(g.grad, {g.heights[kind], g.params.dim});
        sum_rows(on, runs_of(g, sorted, half), table);
      }
    }
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
    const Sorted quotients = sort_rows(on, g, false);
    RunsParams runs[2];
    for (int half = 0; half < 2; ++half) {
      runs[half] = runs_of(g, quotients, half);
      runs[half].starts = starts.mutable_data_ptr<int64_t>() + half * (chunks + 1);
      on.check(gpu::hashed_count_launch(runs[half], on.stream));
    }
    int64_t rows[2];
    for (int half = 0; half < 2; ++half) rows[half] = on.read<int64_t>(runs[half].starts + chunks);
    Tensor found[2], values[2], dense[2];
    for (int half = 0; half < 2; ++half) {
      found[half] = new_tensor(g.ids.ids, {rows[half]}, ScalarType::Long);
      values[half] = torch::stable::new_zeros(g.grad, {rows[half], p.dim});
      runs[half].found = found[half].mutable_data_ptr<int64_t>();
      sum_rows(on, runs[half], values[half]);
    }
    const Sorted remainders = sort_rows(on, g, true);
    for (int half = 0; half < 2; ++half) {
      dense[half] = torch::stable::new_zeros(g.grad, {g.heights[1], p.dim});
      sum_rows(on, runs_of(g, remainders, half), dense[half]);
    }
    return {found[0], values[0], dense[0], found[1], values[1], dense[1]};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_hashed_gradients<Cuda>(m); }

}  // namespace lirank
