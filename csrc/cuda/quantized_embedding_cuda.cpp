// Look-ups in row-wise quantized tables on CUDA tensors: results and launches.
#include "quantized_embedding_ops.h"

#include "cuda/cuda_call.h"
#include "quantized_embedding.cuh"

#include <vector>

namespace lirank {
namespace {

using gpu::PoolParams;

// One table or many, and the tensors that hold them.
struct DeviceTables {
  Tensor packed, rows, dims;
  gpu::TableSet set;
  int64_t count = 1, width = 0;
};

// Widths and heights are data on the device. If the caller does not give the sum of all widths, the
// shape of the result has to wait for them. Then they are checked here, so that a bad one is
// refused at once.
int64_t wait_for_width(const OnDevice& on, const DeviceTables& t, int64_t bits) {
  const int64_t n = t.rows.size(0);
  std::vector<int64_t> rows(n), dims(n);
  for (auto [to, from] :
       {std::pair<int64_t*, const Tensor*>{rows.data(), &t.rows}, {dims.data(), &t.dims}})
    on.check(cudaMemcpyAsync(to, from->const_data_ptr(), n * 8, cudaMemcpyDeviceToHost, on.stream));
  on.check(cudaStreamSynchronize(on.stream));
  return check_table_sizes(on.op, rows.data(), dims.data(), n, bits, t.packed.numel(),
                           CudaBackend::kWidest)
      .width;
}

struct Cuda : CudaBackend {
  using Tables = DeviceTables;

  static Tables one_table(const Device& on, const Tensor& packed, int64_t dim, int bits) {
    Tables t = tables_of(on, packed, bits);
    t.set.one_rows = packed.size(0), t.set.one_dim = dim, t.set.width = t.width = dim;
    return t;
  }

  static Tables many_tables(const Device& on, const Tensor& packed, const Tensor& rows,
                            const Tensor& dims, int bits, int64_t total_dim) {
    Tables t = tables_of(on, packed, bits);
    t.rows = rows, t.dims = dims;
    t.set.rows = rows.const_data_ptr<int64_t>();
    t.set.dims = dims.const_data_ptr<int64_t>();
    t.set.tables = t.count = rows.size(0);
    t.set.width = t.width = total_dim >= 0 ? total_dim : wait_for_width(on, t, bits);
    return t;
  }

  // The widths are numbers on the device. The gradient tells their sum without waiting for it.
  static int64_t known_width(const Tensor& grad) { return grad.size(1); }

  static Tensor pool(const Device& on, const Tables& t, const BagTensors& bags,
                     ScalarType output_dtype) {
    const ScalarType type = written_type(output_dtype);
    Tensor out = new_tensor(t.packed, {bags.view.bag_count, t.width}, type);
    PoolParams p{t.set, bags.view, on.errors, out.mutable_data_ptr(), nullptr, dtype_of(type)};
    on.check(gpu::quantized_embedding_bags_launch(p, on.stream));
    return lirank::as_type(out, output_dtype);
  }

  static Tensor weight_gradient(const Device& on, const Tables& t, const BagTensors& bags,
                                const Tensor& grad) {
    Tensor out = torch::stable::new_zeros(bags.ids, bags.ids.sizes(), ScalarType::Float);
    PoolParams p{
        t.set,         bags.view, on.errors, out.mutable_data_ptr(), grad.const_data_ptr<float>(),
        DType::float32};
    on.check(gpu::quantized_embedding_bags_backward_launch(p, on.stream));
    return out;
  }

 private:
  static Tables tables_of(const Device& on, const Tensor& packed, int bits) {
    check_in_place(on.op, "packed", packed);
    Tables t{packed, {}, {}, {}};
    t.set.packed = packed.const_data_ptr<uint8_t>();
    t.set.bytes = packed.numel();
    t.set.bits = bits;
    return t;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_quantized_bags<Cuda>(m); }

}  // namespace lirank
