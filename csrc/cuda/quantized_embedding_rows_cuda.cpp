// Row-wise quantized tables on CUDA tensors: results and launches.
#include "quantized_embedding_rows_ops.h"

#include "cuda/cuda_call.h"
#include "quantized_embedding.cuh"

namespace lirank {
namespace {

using gpu::RowsParams;

// To name a bad row, the host waits for its number, once per table. A capture cannot wait, so there
// the row is counted for check_errors().
struct BadRow {
  explicit BadRow(const OnDevice& on, const Tensor& beside, RowsParams& p)
      : on(on), waits(!on.capturing()), row(new_tensor(beside, {1}, ScalarType::Long)) {
    p.bad = (unsigned long long*)row.mutable_data_ptr();
    p.errors = waits ? nullptr : on.errors;
    on.check(cudaMemsetAsync(p.bad, 0xff, 8, on.stream));
  }

  // -1 where there is none, or nobody waits.
  int64_t get() const { return waits ? on.read<int64_t>(row.const_data_ptr()) : -1; }

  const OnDevice& on;
  bool waits;
  Tensor row;
};

// The three inputs as a kernel reads them; it does not write through these pointers.
RowsParams read_rows(const Tensor& c, const Tensor& s, const Tensor& m) {
  RowsParams p{};
  p.codes = const_cast<int8_t*>(c.const_data_ptr<int8_t>());
  p.scale = const_cast<float*>(s.const_data_ptr<float>());
  p.mid = const_cast<float*>(m.const_data_ptr<float>());
  p.rows = c.size(0), p.dim = c.size(1);
  return p;
}

// Kernels load 8 bytes at a time. Unpacking runs once per table, so a copy does no harm here.
Tensor aligned(const Tensor& packed) {
  const Tensor t = to_contiguous(packed);
  return (uintptr_t)t.const_data_ptr() % 8 == 0 ? t : torch::stable::clone(t);
}

struct Cuda : CudaBackend {
  static RowsResult<QuantizedRows> quantize(const Device& on, const Tensor& w, int bits) {
    Tensor codes = new_tensor(w, {w.size(0), w.size(1)}, ScalarType::Char);
    Tensor scale = new_tensor(w, {w.size(0)}, ScalarType::Float);
    Tensor mid = new_tensor(w, {w.size(0)}, ScalarType::Float);
    RowsParams p = read_rows(codes, scale, mid);
    p.weight = w.const_data_ptr<float>();
    p.bits = bits;
    const BadRow bad(on, w, p);
    on.check(gpu::quantize_rows_launch(p, on.stream));
    return {{codes, scale, mid}, bad.get()};
  }

  static Tensor dequantize(const Device& on, const Tensor& c, const Tensor& s, const Tensor& m) {
    Tensor out = new_tensor(c, {c.size(0), c.size(1)}, ScalarType::Float);
    RowsParams p = read_rows(c, s, m);
    p.out = out.mutable_data_ptr<float>();
    on.check(gpu::dequantize_rows_launch(p, on.stream));
    return out;
  }

  static RowsResult<Tensor> pack(const Device& on, const Tensor& c, const Tensor& s,
                                 const Tensor& m, int bits) {
    const int64_t row_bytes = rowwise::layout(c.size(1), bits).row_bytes;
    Tensor packed = new_tensor(c, {c.size(0), row_bytes}, ScalarType::Byte);
    RowsParams p = read_rows(c, s, m);
    p.packed = packed.mutable_data_ptr<uint8_t>();
    p.bits = bits;
    if (bits == 8) {  // any code fits: nothing to wait for
      on.check(gpu::pack_rows_launch(p, on.stream));
      return {packed, -1};
    }
    const BadRow bad(on, c, p);
    on.check(gpu::pack_rows_launch(p, on.stream));
    return {packed, bad.get()};
  }

  static QuantizedRows unpack(const Device& on, const Tensor& packed, int64_t dim, int bits) {
    const Tensor t = aligned(packed);
    Tensor codes = new_tensor(t, {t.size(0), dim}, ScalarType::Char);
    Tensor scale = new_tensor(t, {t.size(0)}, ScalarType::Float);
    Tensor mid = new_tensor(t, {t.size(0)}, ScalarType::Float);
    RowsParams p = read_rows(codes, scale, mid);
    p.packed = const_cast<uint8_t*>(t.const_data_ptr<uint8_t>());
    p.bits = bits;
    on.check(gpu::unpack_rows_launch(p, on.stream));
    return {codes, scale, mid};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) { register_quantized_rows<Cuda>(m); }

}  // namespace lirank
