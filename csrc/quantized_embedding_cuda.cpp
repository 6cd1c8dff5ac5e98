// Row-wise quantized tables on CUDA tensors: checks, results, launches.
#include "quantized_embedding.cuh"

#include "bags_cuda.h"
#include "quantized_embedding_layout.h"

namespace lirank {
namespace {

using gpu::PoolParams;
using gpu::RowsParams;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

void check_bits(const char* op, int64_t bits) {
  LIRANK_CHECK(bits == 8 || bits == 4, op, "bits", "wanted 8 or 4, got ", bits);
}

void check_width(const char* op, int64_t dim) {
  LIRANK_CHECK(dim > 0, op, "dim", "wanted a positive width, got ", dim);
}

// ---- rows ------------------------------------------------------------------------------

// Naming the bad row means waiting for it, once a table. A capture cannot wait: there the row is
// counted for check_errors().
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

Triple quantize_rows(const Tensor& weight, int64_t bits) {
  const char* op = "quantize_rows";
  check_dim(op, "weight", weight, 2);
  check_bits(op, bits);
  LIRANK_CHECK(weight.scalar_type() != ScalarType::Double && is_floating(weight.scalar_type()), op,
               "weight", "wanted float32, float16 or bfloat16, got ",
               dtype_name(weight.scalar_type()));
  LIRANK_CHECK(weight.size(1) > 0, op, "weight", "wanted a positive width, got shape ",
               shape(weight));
  const OnDevice on(op, "weight", weight);
  const Tensor w = as_type(weight, ScalarType::Float);
  Tensor codes = new_tensor(w, {w.size(0), w.size(1)}, ScalarType::Char);
  Tensor scale = new_tensor(w, {w.size(0)}, ScalarType::Float);
  Tensor mid = new_tensor(w, {w.size(0)}, ScalarType::Float);
  RowsParams p{};
  p.weight = w.const_data_ptr<float>();
  p.codes = codes.mutable_data_ptr<int8_t>();
  p.scale = scale.mutable_data_ptr<float>();
  p.mid = mid.mutable_data_ptr<float>();
  p.rows = w.size(0), p.dim = w.size(1), p.bits = (int)bits;
  const BadRow bad(on, w, p);
  on.check(gpu::quantize_rows_launch(p, on.stream));
  const int64_t row = bad.get();
  LIRANK_CHECK(row < 0, op, "weight",
               "wanted finite values in a range that float32 holds, got row ", row,
               " with NaN, Inf or a larger range");
  return {codes, scale, mid};
}

void check_rows(const char* op, const Tensor& codes, const Tensor& scale, const Tensor& mid) {
  check_dim(op, "codes", codes, 2);
  check_same_dtype(op, "codes", codes, ScalarType::Char);
  for (auto [name, t] : {std::pair<const char*, const Tensor*>{"scale", &scale}, {"mid", &mid}}) {
    check_same_dtype(op, name, *t, ScalarType::Float);
    check_together(op, name, *t, codes);
    LIRANK_CHECK(t->dim() == 1 && t->size(0) == codes.size(0), op, name, "wanted shape (",
                 codes.size(0), ",), got ", shape(*t));
  }
}

// The three inputs as a kernel reads them; it does not write through these pointers.
RowsParams read_rows(const Tensor& c, const Tensor& s, const Tensor& m) {
  RowsParams p{};
  p.codes = const_cast<int8_t*>(c.const_data_ptr<int8_t>());
  p.scale = const_cast<float*>(s.const_data_ptr<float>());
  p.mid = const_cast<float*>(m.const_data_ptr<float>());
  p.rows = c.size(0), p.dim = c.size(1);
  return p;
}

Tensor dequantize_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid) {
  const char* op = "dequantize_rows";
  check_rows(op, codes, scale, mid);
  const OnDevice on(op, "codes", codes);
  const Tensor c = to_contiguous(codes), s = to_contiguous(scale), m = to_contiguous(mid);
  Tensor out = new_tensor(c, {c.size(0), c.size(1)}, ScalarType::Float);
  RowsParams p = read_rows(c, s, m);
  p.out = out.mutable_data_ptr<float>();
  on.check(gpu::dequantize_rows_launch(p, on.stream));
  return out;
}

Tensor pack_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid, int64_t bits) {
  const char* op = "pack_rows";
  check_rows(op, codes, scale, mid);
  check_bits(op, bits);
  check_width(op, codes.size(1));
  const OnDevice on(op, "codes", codes);
  const Tensor c = to_contiguous(codes), s = to_contiguous(scale), m = to_contiguous(mid);
  const int64_t row_bytes = rowwise::layout(c.size(1), (int)bits).row_bytes;
  Tensor packed = new_tensor(c, {c.size(0), row_bytes}, ScalarType::Byte);
  RowsParams p = read_rows(c, s, m);
  p.packed = packed.mutable_data_ptr<uint8_t>();
  p.bits = (int)bits;
  if (bits == 8) {  // any code fits: nothing to wait for
    on.check(gpu::pack_rows_launch(p, on.stream));
    return packed;
  }
  const BadRow bad(on, c, p);
  on.check(gpu::pack_rows_launch(p, on.stream));
  const int64_t row = bad.get();
  LIRANK_CHECK(row < 0, op, "codes", "wanted codes in [-8, 7] for 4 bits, got row ", row,
               " with others");
  return packed;
}

void check_packed(const char* op, const Tensor& packed, int64_t dim, int64_t bits) {
  check_same_dtype(op, "packed", packed, ScalarType::Byte);
  check_bits(op, bits);
  check_width(op, dim);
  check_dim(op, "packed", packed, 2);
  const int64_t wanted = rowwise::layout(dim, (int)bits).row_bytes;
  LIRANK_CHECK(packed.size(1) == wanted, op, "packed", "wanted ", wanted, " bytes a row for dim ",
               dim, " at ", bits, " bits, got shape ", shape(packed));
}

// Kernels load 8 bytes at a time. Unpacking runs once a table, so that here a copy does no harm.
Tensor aligned(const Tensor& packed) {
  const Tensor t = to_contiguous(packed);
  return (uintptr_t)t.const_data_ptr() % 8 == 0 ? t : torch::stable::clone(t);
}

Triple unpack_rows(const Tensor& packed, int64_t dim, int64_t bits) {
  const char* op = "unpack_rows";
  check_packed(op, packed, dim, bits);
  const OnDevice on(op, "packed", packed);
  const Tensor t = aligned(packed);
  Tensor codes = new_tensor(t, {t.size(0), dim}, ScalarType::Char);
  Tensor scale = new_tensor(t, {t.size(0)}, ScalarType::Float);
  Tensor mid = new_tensor(t, {t.size(0)}, ScalarType::Float);
  RowsParams p = read_rows(codes, scale, mid);
  p.packed = const_cast<uint8_t*>(t.const_data_ptr<uint8_t>());
  p.bits = (int)bits;
  on.check(gpu::unpack_rows_launch(p, on.stream));
  return {codes, scale, mid};
}

// ---- look-ups --------------------------------------------------------------------------

// One table or many, and the tensors that hold them.
struct Tables {
  Tensor packed, rows, dims;
  gpu::TableSet set;
};

Tables one_table(const char* op, const Tensor& packed, int64_t dim, int64_t bits) {
  check_packed(op, packed, dim, bits);
  check_in_place(op, "packed", packed);
  Tables t{packed, {}, {}, {}};
  t.set.packed = t.packed.const_data_ptr<uint8_t>();
  t.set.bytes = t.packed.numel();
  t.set.one_rows = t.packed.size(0), t.set.one_dim = dim, t.set.width = dim;
  t.set.bits = (int)bits;
  return t;
}

// Widths and heights are data on the device. Without their sum the shape of the result has to be
// waited for, and then they are checked here, so that the refusal comes at once.
int64_t wait_for_width(const OnDevice& on, const Tables& t, int64_t bits) {
  const char* op = on.op;
  const int64_t n = t.rows.size(0);
  std::vector<int64_t> rows(n), dims(n);
  for (auto [to, from] :
       {std::pair<int64_t*, const Tensor*>{rows.data(), &t.rows}, {dims.data(), &t.dims}})
    on.check(cudaMemcpyAsync(to, from->const_data_ptr(), n * 8, cudaMemcpyDeviceToHost, on.stream));
  on.check(cudaStreamSynchronize(on.stream));
  int64_t width = 0, tight = 0, whole = 0;
  for (int64_t i = 0; i < n; ++i) {
    check_width(op, dims[i]);
    LIRANK_CHECK(rows[i] >= 0, op, "rows", "wanted no negative number, got ", rows[i],
                 " for table ", i);
    const int64_t row_bytes = rowwise::layout(dims[i], (int)bits).row_bytes;
    LIRANK_CHECK(rows[i] <= t.packed.numel() / row_bytes, op, "packed", "wanted ", rows[i],
                 " rows of ", row_bytes, " bytes for table ", i, ", got ", t.packed.numel(),
                 " bytes");
    tight += rows[i] * row_bytes;
    whole += (rows[i] * row_bytes + 63) / 64 * 64;
    width += dims[i];
  }
  LIRANK_CHECK(t.packed.numel() == tight || t.packed.numel() == whole, op, "packed", "wanted ",
               tight, " bytes (tables end to end) or ", whole, " (each start on 64 bytes), got ",
               t.packed.numel());
  return width;
}

Tables many_tables(const OnDevice& on, const Tensor& packed, const Tensor& rows, const Tensor& dims,
                   int64_t bits, int64_t width) {
  const char* op = on.op;
  check_same_dtype(op, "packed", packed, ScalarType::Byte);
  check_dim(op, "packed", packed, 1);
  check_bits(op, bits);
  for (auto [name, t] : {std::pair<const char*, const Tensor*>{"rows", &rows}, {"dims", &dims}}) {
    check_same_dtype(op, name, *t, ScalarType::Long);
    check_dim(op, name, *t, 1);
    check_together(op, name, *t, packed);
  }
  LIRANK_CHECK(rows.size(0) == dims.size(0) && rows.size(0) > 0, op, "dims",
               "wanted one width per table, at least one, got ", shape(dims), " for rows ",
               shape(rows));
  check_in_place(op, "packed", packed);
  Tables t{packed, to_contiguous(rows), to_contiguous(dims), {}};
  t.set.packed = t.packed.const_data_ptr<uint8_t>();
  t.set.bytes = t.packed.numel();
  t.set.rows = t.rows.const_data_ptr<int64_t>();
  t.set.dims = t.dims.const_data_ptr<int64_t>();
  t.set.tables = t.rows.size(0);
  t.set.bits = (int)bits;
  t.set.width = width >= 0 ? width : wait_for_width(on, t, bits);
  return t;
}

DeviceBags table_bags(const char* op, const Tensor& indices, const Tensor& offsets, int64_t tables,
                      const std::string& mode, const OptionalTensor& weights,
                      const Tensor& beside) {
  check_dim(op, "offsets", offsets, 1);
  LIRANK_CHECK(offsets.numel() > 0 && (offsets.numel() - 1) % tables == 0, op, "offsets",
               "wanted tables * bags + 1 offsets for ", tables, " tables, got ", offsets.numel());
  DeviceBags d = read_device_bags(op, "indices", indices, offsets, mode, weights, true,
                                  ScalarType::Float, beside);
  d.bags.bags /= tables;
  return d;
}

Tensor pool(const OnDevice& on, const Tables& t, const DeviceBags& d, ScalarType output_dtype) {
  const ScalarType type = written_type(output_dtype);
  Tensor out = new_tensor(t.packed, {d.bags.bags, t.set.width}, type);
  PoolParams p{t.set, d.bags, on.errors, out.mutable_data_ptr(), nullptr, element_of(type)};
  on.check(gpu::quantized_embedding_bags_launch(p, on.stream));
  return as_type(out, output_dtype);
}

Tensor quantized_embedding_bag(const Tensor& packed, const Tensor& indices,
                               const OptionalTensor& offsets, int64_t dim, int64_t bits,
                               std::string mode, const OptionalTensor& weights, bool include_last,
                               ScalarType output_dtype) {
  const OnDevice on("quantized_embedding_bag", "packed", packed);
  check_output_dtype(on.op, output_dtype);
  const Tables t = one_table(on.op, packed, dim, bits);
  return pool(on, t,
              read_device_bags(on.op, "indices", indices, offsets, mode, weights, include_last,
                               ScalarType::Float, packed),
              output_dtype);
}

Tensor quantized_embedding_bags(const Tensor& packed, const Tensor& rows, const Tensor& dims,
                                const Tensor& indices, const Tensor& offsets, int64_t bits,
                                std::string mode, const OptionalTensor& weights,
                                ScalarType output_dtype, int64_t total_dim) {
  const OnDevice on("quantized_embedding_bags", "packed", packed);
  check_output_dtype(on.op, output_dtype);
  const Tables t = many_tables(on, packed, rows, dims, bits, total_dim);
  const DeviceBags d = table_bags(on.op, indices, offsets, t.set.tables, mode, weights, packed);
  return pool(on, t, d, output_dtype);
}

// ---- gradient of per_sample_weights ----------------------------------------------------

Tensor weight_gradient(const OnDevice& on, const Tables& t, const DeviceBags& d,
                       const Tensor& grad) {
  LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == d.bags.bags && grad.size(1) == t.set.width, on.op,
               "grad", "wanted shape (", d.bags.bags, ", ", t.set.width, "), got ", shape(grad));
  check_together(on.op, "grad", grad, t.packed);
  const Tensor g = as_type(grad, ScalarType::Float);
  Tensor out = torch::stable::new_zeros(d.ids, d.ids.sizes(), ScalarType::Float);
  PoolParams p{t.set,
               d.bags,
               on.errors,
               out.mutable_data_ptr(),
               g.const_data_ptr<float>(),
               gpu::Element::float32};
  on.check(gpu::quantized_embedding_bags_backward_launch(p, on.stream));
  return out;
}

Tensor quantized_embedding_bag_backward(const Tensor& grad, const Tensor& packed,
                                        const Tensor& indices, const OptionalTensor& offsets,
                                        int64_t dim, int64_t bits, bool include_last) {
  const OnDevice on("quantized_embedding_bag_backward", "packed", packed);
  const Tables t = one_table(on.op, packed, dim, bits);
  return weight_gradient(on, t,
                         read_device_bags(on.op, "indices", indices, offsets, "sum", std::nullopt,
                                          include_last, ScalarType::Float, packed),
                         grad);
}

Tensor quantized_embedding_bags_backward(const Tensor& grad, const Tensor& packed,
                                         const Tensor& rows, const Tensor& dims,
                                         const Tensor& indices, const Tensor& offsets,
                                         int64_t bits) {
  const OnDevice on("quantized_embedding_bags_backward", "packed", packed);
  check_dim(on.op, "grad", grad, 2);
  const Tables t = many_tables(on, packed, rows, dims, bits, grad.size(1));
  return weight_gradient(
      on, t, table_bags(on.op, indices, offsets, t.set.tables, "sum", std::nullopt, packed), grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) {
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows));
  m.impl("pack_rows", TORCH_BOX(&pack_rows));
  m.impl("unpack_rows", TORCH_BOX(&unpack_rows));
  m.impl("quantized_embedding_bag", TORCH_BOX(&quantized_embedding_bag));
  m.impl("quantized_embedding_bags", TORCH_BOX(&quantized_embedding_bags));
  m.impl("quantized_embedding_bag_backward", TORCH_BOX(&quantized_embedding_bag_backward));
  m.impl("quantized_embedding_bags_backward", TORCH_BOX(&quantized_embedding_bags_backward));
}

}  // namespace lirank
