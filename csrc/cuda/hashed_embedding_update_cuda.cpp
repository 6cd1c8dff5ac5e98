// Hashed tables moved by their gradients, on CUDA tensors. Nothing here waits for the device, so
// that a CUDA graph can hold it.
#include "hashed_embedding_update_ops.h"

#include "cuda/hashed_embedding_sort_cuda.h"

namespace lirank {
namespace {

struct Cuda : CudaBackend {
  static constexpr int kBitsOfPosition = 31;

  static void update(const Device& on, const HashedUpdateCall& call) {
    Gradients g = read_gradients(on, call.gradients);
    start(on, g);
    gpu::UpdateParams u{};
    Tensor rate;  // lives until the kernels are launched
    if (call.lr.is_cuda()) {
      rate = as_type(call.lr, compute_type(call.tables[0].scalar_type()));
      u.rate = rate.const_data_ptr();
    } else {
      u.lr = read_rate(call.lr);
    }
    u.l2 = call.l2, u.eps = call.eps;
    for (int kind = 0; kind < 2; ++kind) {
      const Sorted sorted = sort_rows(on, g, kind);
      for (int half = 0; half < 2; ++half) {
        const int table = 2 * half + kind;
        u.runs = runs_of(g, sorted, half);
        u.runs.out = call.tables[table].mutable_data_ptr();
        u.sums = call.has_sums ? call.sums[table].mutable_data_ptr() : nullptr;
        on.check(gpu::hashed_update_launch(u, on.stream));
      }
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_hashed_update<Cuda>(m); }

}  // namespace lirank
