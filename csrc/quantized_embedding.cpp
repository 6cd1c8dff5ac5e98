// Row-wise quantized tables: quantize, pack, look up. Checks, CPU kernels, schemas.
// Source: LiRank (arXiv 2402.06859), middle-max row-wise quantization.
#include "checks.h"
#include "convert.h"
#include "huge_pages.h"
#include "quantized_embedding_kernels.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace lirank {
namespace {

using rowwise::Layout;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

// Bytes read and written below which a second thread costs more than it brings.
constexpr int64_t kBytesPerTask = 64 * 1024;
// Estimated ns of a call's look-ups below which it stays on one thread: one that sleeps wakes after
// 20 to 40 us on a virtual machine (5,000 rows of 24 bytes in cache, in bags of one: 31 us on one
// thread, 40 on two).
constexpr int64_t kOneThread = 50'000;
// Bytes of all tables of a call beyond which its rows come from memory: then 12 ns a line and
// thread, else 15 bytes a ns, as the result is written.
constexpr int64_t kInCache = 16 << 20;

void check_bits(const char* op, int64_t bits) {
  LIRANK_CHECK(bits == 8 || bits == 4, op, "bits", "wanted 8 or 4, got ", bits);
}

void check_width(const char* op, int64_t dim) {
  LIRANK_CHECK(dim > 0, op, "dim", "wanted a positive width, got ", dim);
}

void lower_to(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

// ---- rows ------------------------------------------------------------------------------

Triple quantize_rows(const Tensor& weight, int64_t bits) {
  const char* op = "quantize_rows";
  check_dim(op, "weight", weight, 2);
  check_bits(op, bits);
  LIRANK_CHECK(weight.scalar_type() != ScalarType::Double && is_floating(weight.scalar_type()), op,
               "weight", "wanted float32, float16 or bfloat16, got ",
               dtype_name(weight.scalar_type()));
  LIRANK_CHECK(weight.size(1) > 0, op, "weight", "wanted a positive width, got shape ",
               shape(weight));
  const Tensor w = as_float_type(weight, ScalarType::Float);
  const int64_t rows = w.size(0), dim = w.size(1);
  Tensor codes = empty_like_type(w, ScalarType::Char);
  Tensor scale = new_tensor({rows}, ScalarType::Float);
  Tensor mid = new_tensor({rows}, ScalarType::Float);
  const float* pw = w.const_data_ptr<float>();
  int8_t* pc = codes.mutable_data_ptr<int8_t>();
  float *ps = scale.mutable_data_ptr<float>(), *pm = mid.mutable_data_ptr<float>();
  std::atomic<int64_t> bad{INT64_MAX};
  torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / (4 * dim), [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      if (!LIRANK_DISPATCH(quantize_row, pw + i * dim, dim, (int)bits, pc + i * dim, ps + i,
                           pm + i))
        return lower_to(bad, i);
  });
  LIRANK_CHECK(bad == INT64_MAX, op, "weight",
               "wanted finite values in a range that float32 holds, got row ", bad.load(),
               " with NaN, Inf or a larger range");
  return {codes, scale, mid};
}

void check_rows(const char* op, const Tensor& codes, const Tensor& scale, const Tensor& mid) {
  check_dim(op, "codes", codes, 2);
  check_same_dtype(op, "codes", codes, ScalarType::Char);
  for (auto [name, t] : {std::pair<const char*, const Tensor*>{"scale", &scale}, {"mid", &mid}}) {
    check_same_dtype(op, name, *t, ScalarType::Float);
    LIRANK_CHECK(t->dim() == 1 && t->size(0) == codes.size(0), op, name, "wanted shape (",
                 codes.size(0), ",), got ", shape(*t));
  }
}

Tensor dequantize_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid) {
  check_rows("dequantize_rows", codes, scale, mid);
  const Tensor c = to_contiguous(codes), s = to_contiguous(scale), m = to_contiguous(mid);
  Tensor out = empty_like_type(c, ScalarType::Float);
  const int64_t dim = c.size(1);
  const int8_t* pc = c.const_data_ptr<int8_t>();
  const float *ps = s.const_data_ptr<float>(), *pm = m.const_data_ptr<float>();
  float* po = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(
      0, c.size(0), 1 + kBytesPerTask / (dim + 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < dim; ++j)
            po[i * dim + j] = rowwise::dequantize(pc[i * dim + j], ps[i], pm[i]);
      });
  return out;
}

Tensor pack_rows(const Tensor& codes, const Tensor& scale, const Tensor& mid, int64_t bits) {
  const char* op = "pack_rows";
  check_rows(op, codes, scale, mid);
  check_bits(op, bits);
  check_width(op, codes.size(1));
  const Tensor c = to_contiguous(codes), s = to_contiguous(scale), m = to_contiguous(mid);
  const int64_t rows = c.size(0), dim = c.size(1);
  const Layout l = rowwise::layout(dim, (int)bits);
  Tensor packed = new_tensor({rows, l.row_bytes}, ScalarType::Byte);
  const int8_t* pc = c.const_data_ptr<int8_t>();
  const float *ps = s.const_data_ptr<float>(), *pm = m.const_data_ptr<float>();
  uint8_t* table = packed.mutable_data_ptr<uint8_t>();
  use_huge_pages(table, rows * l.row_bytes);
  std::atomic<int64_t> bad{INT64_MAX};
  const int64_t used = l.apart ? l.code_bytes : l.row_bytes;
  torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t* row = table + i * l.code_stride;
      const int8_t* from = pc + i * dim;
      std::memset(row, 0, (size_t)used);
      if (bits == 8) {
        std::memcpy(row, from, (size_t)dim);
      } else {
        for (int64_t j = 0; j < dim; ++j) {
          if (from[j] < -8 || from[j] > 7) return lower_to(bad, i);
          row[j / 2] |= (uint8_t)((from[j] + 8) << (j & 1 ? 4 : 0));
        }
      }
      const rowwise::Pair pair{ps[i], pm[i]};
      std::memcpy(table + rowwise::first_pair(l, rows) + i * l.pair_stride, &pair, sizeof pair);
    }
  });
  LIRANK_CHECK(bad == INT64_MAX, op, "codes", "wanted codes in [-8, 7] for 4 bits, got row ",
               bad.load(), " with others");
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

Triple unpack_rows(const Tensor& packed, int64_t dim, int64_t bits) {
  check_packed("unpack_rows", packed, dim, bits);
  const Tensor p = to_contiguous(packed);
  const int64_t rows = p.size(0);
  const Layout l = rowwise::layout(dim, (int)bits);
  Tensor codes = new_tensor({rows, dim}, ScalarType::Char);
  Tensor scale = new_tensor({rows}, ScalarType::Float);
  Tensor mid = new_tensor({rows}, ScalarType::Float);
  const uint8_t* table = p.const_data_ptr<uint8_t>();
  int8_t* pc = codes.mutable_data_ptr<int8_t>();
  float *ps = scale.mutable_data_ptr<float>(), *pm = mid.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* row = table + i * l.code_stride;
      rowwise::Pair pair;
      std::memcpy(&pair, table + rowwise::first_pair(l, rows) + i * l.pair_stride, sizeof pair);
      ps[i] = pair.scale;
      pm[i] = pair.mid;
      for (int64_t j = 0; j < dim; ++j)
        pc[i * dim + j] = bits == 8 ? (int8_t)row[j] : (int8_t)rowwise::unpack4(row[j / 2], j);
    }
  });
  return {codes, scale, mid};
}

// ---- look-ups --------------------------------------------------------------------------

// A call and the tensors that it points into.
struct Bags {
  Tensor indices, offsets, weights;
  PoolCall call{};
};

template <typename Offset>
void check_offset_values(const char* op, const Offset* offsets, int64_t n, int64_t count) {
  if (n == 0) return;
  const bool rising = LIRANK_DISPATCH(rise, offsets, n);
  LIRANK_CHECK(offsets[0] == 0, op, "offsets", "wanted 0 first, got ", offsets[0]);
  for (int64_t i = 1; i < n && !rising; ++i)
    LIRANK_CHECK(offsets[i] >= offsets[i - 1], op, "offsets", "wanted no decrease, got ",
                 offsets[i], " after ", offsets[i - 1], " at position ", i);
  LIRANK_CHECK((int64_t)offsets[n - 1] <= count, op, "offsets", "wanted at most ", count,
               " (the number of indices), got ", offsets[n - 1], " at position ", n - 1);
}

void check_offsets(const char* op, const Tensor& offsets, PoolCall& call) {
  call.wide = offsets.scalar_type() == ScalarType::Long;
  if (call.wide) {
    call.offsets = offsets.const_data_ptr<int64_t>();
    check_offset_values(op, (const int64_t*)call.offsets, call.offset_count, call.count);
  } else {
    call.offsets = offsets.const_data_ptr<int32_t>();
    check_offset_values(op, (const int32_t*)call.offsets, call.offset_count, call.count);
  }
}

bool check_mode(const char* op, const std::string& mode, const OptionalTensor& weights) {
  LIRANK_CHECK(mode == "sum" || mode == "mean", op, "mode", "wanted 'sum' or 'mean', got '", mode,
               "'");
  LIRANK_CHECK(!(weights && mode == "mean"), op, "per_sample_weights",
               "wanted mode 'sum' with weights, got '", mode, "'");
  return mode == "mean";
}

void take_weights(const char* op, const OptionalTensor& weights, Bags& b, const Tensor& indices) {
  if (!weights) return;
  check_floating(op, "per_sample_weights", *weights);
  bool same = weights->dim() == indices.dim();
  for (int64_t i = 0; same && i < indices.dim(); ++i) same = weights->size(i) == indices.size(i);
  LIRANK_CHECK(same, op, "per_sample_weights", "wanted the shape of indices ", shape(indices),
               ", got ", shape(*weights));
  b.weights = as_float_type(*weights, ScalarType::Float);
  b.call.weights = b.weights.const_data_ptr<float>();
}

Bags read_bags(const char* op, const Tensor& indices, const OptionalTensor& offsets,
               bool include_last, const OptionalTensor& weights) {
  check_index_dtype(op, "indices", indices);
  Bags b;
  b.indices = to_contiguous(indices);
  b.call.count = indices.numel();
  if (offsets) {
    check_dim(op, "indices", indices, 1);
    check_index_dtype(op, "offsets", *offsets);
    check_dim(op, "offsets", *offsets, 1);
    LIRANK_CHECK(!include_last || offsets->numel() > 0, op, "offsets",
                 "wanted at least one with include_last_offset, got shape ", shape(*offsets));
    b.offsets = to_contiguous(*offsets);
    b.call.offset_count = b.offsets.numel();
    b.call.bags = b.call.offset_count - (include_last ? 1 : 0);
    check_offsets(op, b.offsets, b.call);
  } else {
    LIRANK_CHECK(indices.dim() == 1 || indices.dim() == 2, op, "indices",
                 "wanted 1 or 2 dimensions without offsets, got shape ", shape(indices));
    LIRANK_CHECK(!include_last, op, "include_last_offset", "wanted offsets with it, got None");
    b.call.bags = indices.size(0);
    b.call.fixed = indices.dim() == 1 ? 1 : indices.size(1);
  }
  take_weights(op, weights, b, indices);
  return b;
}

template <typename Function>
void with_ids(const Bags& b, const Function& f) {
  if (b.indices.scalar_type() == ScalarType::Long) {
    f(b.indices.const_data_ptr<int64_t>());
  } else {
    f(b.indices.const_data_ptr<int32_t>());
  }
}

template <typename T>
[[noreturn]] void refuse_index(const char* op, const PoolCall& call, const T* ids, int64_t at) {
  int64_t table = 0;
  while (table + 1 < call.table_count && call.start((table + 1) * call.bags) <= at) ++table;
  std::ostringstream text;
  text << "lirank::" << op << ": indices[" << at << "] = " << (int64_t)ids[at]
       << " is out of range for table " << table << " with " << call.tables[table].rows << " rows";
  throw std::runtime_error(text.str());
}

PoolTable table_view(const uint8_t* base, int64_t rows, int64_t dim, int64_t bits, int64_t column) {
  const Layout l = rowwise::layout(dim, (int)bits);
  const uint8_t* pairs = base + rowwise::first_pair(l, rows);
  return {base, pairs, l.code_stride, l.pair_stride, rows, dim, column};
}

// What a call's look-ups take on one thread, roughly; at least 1.
int64_t estimated_ns(const PoolCall& call, int64_t items) {
  int64_t bytes = 0, row = 0, width = 0;
  for (int64_t t = 0; t < call.table_count; ++t) {
    const PoolTable& table = call.tables[t];
    bytes += table.rows * (table.code_stride + 8);
    row += table.code_stride + 8;
    width += table.dim;
  }
  row /= call.table_count;
  const int64_t each = bytes > kInCache ? 12 * (1 + row / 64) : 1 + row / 15;
  return 1 + call.count * each + items * (width / call.table_count) * 4 / 15;
}

// A task owns a run of items. Every result is written by one task alone, in the order of ids.
void pool_all(const char* op, const Bags& b) {
  const PoolCall& call = b.call;
  const int64_t items = call.table_count * call.bags;
  if (items == 0) return;
  const int64_t ns = estimated_ns(call, items);
  std::atomic<int64_t> bad{INT64_MAX};
  with_ids(b, [&](const auto* ids) {
    torch::stable::parallel_for(0, items, 1 + items * kOneThread / ns,
                                [&](int64_t begin, int64_t end) {
                                  const int64_t at = LIRANK_DISPATCH(pool, call, ids, begin, end);
                                  if (at >= 0) lower_to(bad, at);
                                });
    if (bad != INT64_MAX) refuse_index(op, call, ids, bad);
  });
}

void give_tables(Bags& b, const PoolTable* tables, int64_t count, int64_t bits, bool mean,
                 float* out, int64_t out_stride) {
  b.call.tables = tables;
  b.call.table_count = count;
  b.call.bits = (int)bits;
  b.call.mean = mean;
  b.call.out = out;
  b.call.out_stride = out_stride;
}

void check_output_dtype(const char* op, ScalarType type) {
  LIRANK_CHECK(is_floating(type), op, "output_dtype",
               "wanted float32, float64, float16 or bfloat16, got ", dtype_name(type));
}

Tensor quantized_embedding_bag(const Tensor& packed, const Tensor& indices,
                               const OptionalTensor& offsets, int64_t dim, int64_t bits,
                               std::string mode, const OptionalTensor& weights, bool include_last,
                               ScalarType output_dtype) {
  const char* op = "quantized_embedding_bag";
  check_packed(op, packed, dim, bits);
  const bool mean = check_mode(op, mode, weights);
  check_output_dtype(op, output_dtype);
  Bags b = read_bags(op, indices, offsets, include_last, weights);
  const Tensor packed_rows = to_contiguous(packed);
  const PoolTable table =
      table_view(packed_rows.const_data_ptr<uint8_t>(), packed_rows.size(0), dim, bits, 0);
  Tensor out = new_tensor({b.call.bags, dim}, ScalarType::Float);
  float* po = out.mutable_data_ptr<float>();
  if (!offsets && b.call.fixed == 0) {
    std::memset(po, 0, sizeof(float) * (size_t)out.numel());
  } else {
    give_tables(b, &table, 1, bits, mean, po, dim);
    pool_all(op, b);
  }
  return as_float_type(out, output_dtype);
}

// The tables of a concatenation, one behind the other or each starting on 64 bytes.
std::vector<PoolTable> read_tables(const char* op, const Tensor& packed, const Tensor& rows,
                                   const Tensor& dims, int64_t bits, int64_t* width) {
  check_same_dtype(op, "packed", packed, ScalarType::Byte);
  check_dim(op, "packed", packed, 1);
  check_bits(op, bits);
  for (auto [name, t] : {std::pair<const char*, const Tensor*>{"rows", &rows}, {"dims", &dims}}) {
    check_same_dtype(op, name, *t, ScalarType::Long);
    check_dim(op, name, *t, 1);
  }
  const int64_t count = rows.size(0), size = packed.numel();
  LIRANK_CHECK(count == dims.size(0) && count > 0, op, "dims",
               "wanted one width per table, at least one, got ", shape(dims), " for rows ",
               shape(rows));
  const Tensor r = to_contiguous(rows), d = to_contiguous(dims);
  const int64_t *n = r.const_data_ptr<int64_t>(), *dim = d.const_data_ptr<int64_t>();
  int64_t tight = 0, aligned = 0;
  for (int64_t t = 0; t < count; ++t) {
    check_width(op, dim[t]);
    LIRANK_CHECK(n[t] >= 0, op, "rows", "wanted no negative number, got ", n[t], " for table ", t);
    const int64_t row_bytes = rowwise::layout(dim[t], (int)bits).row_bytes;
    LIRANK_CHECK(n[t] <= size / row_bytes, op, "packed", "wanted ", n[t], " rows of ", row_bytes,
                 " bytes for table ", t, ", got ", size, " bytes");
    tight += n[t] * row_bytes;
    aligned += (n[t] * row_bytes + 63) / 64 * 64;
  }
  LIRANK_CHECK(size == tight || size == aligned, op, "packed", "wanted ", tight,
               " bytes (tables end to end) or ", aligned, " (each start on 64 bytes), got ", size);
  std::vector<PoolTable> tables((size_t)count);
  const uint8_t* base = packed.const_data_ptr<uint8_t>();
  *width = 0;
  for (int64_t t = 0; t < count; ++t) {
    tables[(size_t)t] = table_view(base, n[t], dim[t], bits, *width);
    const int64_t bytes = n[t] * rowwise::layout(dim[t], (int)bits).row_bytes;
    base += size == aligned ? (bytes + 63) / 64 * 64 : bytes;
    *width += dim[t];
  }
  return tables;
}

Bags read_table_bags(const char* op, const Tensor& indices, const Tensor& offsets, int64_t tables,
                     const OptionalTensor& weights) {
  check_dim(op, "offsets", offsets, 1);
  LIRANK_CHECK(offsets.numel() % tables == 1 % tables && offsets.numel() > 0, op, "offsets",
               "wanted tables * bags + 1 offsets for ", tables, " tables, got ", offsets.numel());
  Bags b = read_bags(op, indices, offsets, true, weights);
  b.call.bags = (offsets.numel() - 1) / tables;
  return b;
}

Tensor quantized_embedding_bags(const Tensor& packed, const Tensor& rows, const Tensor& dims,
                                const Tensor& indices, const Tensor& offsets, int64_t bits,
                                std::string mode, const OptionalTensor& weights,
                                ScalarType output_dtype, int64_t total_dim) {
  const char* op = "quantized_embedding_bags";
  const bool mean = check_mode(op, mode, weights);
  check_output_dtype(op, output_dtype);
  const Tensor p = to_contiguous(packed);
  int64_t width = 0;
  const std::vector<PoolTable> tables = read_tables(op, p, rows, dims, bits, &width);
  LIRANK_CHECK(total_dim < 0 || total_dim == width, op, "total_dim", "wanted the sum of dims ",
               width, ", got ", total_dim);
  Bags b = read_table_bags(op, indices, offsets, (int64_t)tables.size(), weights);
  Tensor out = new_tensor({b.call.bags, width}, ScalarType::Float);
  give_tables(b, tables.data(), (int64_t)tables.size(), bits, mean, out.mutable_data_ptr<float>(),
              width);
  pool_all(op, b);
  return as_float_type(out, output_dtype);
}

// ---- gradient of per_sample_weights ----------------------------------------------------

// The ids were checked by the forward; they are checked again, since this is an op of its own.
Tensor weight_gradient(const char* op, const Bags& b, const Tensor& grad, int64_t width) {
  const PoolCall& call = b.call;
  LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == call.bags && grad.size(1) == width, op, "grad",
               "wanted shape (", call.bags, ", ", width, "), got ", shape(grad));
  const Tensor g = as_float_type(grad, ScalarType::Float);
  Tensor out = empty_like_type(b.indices, ScalarType::Float);
  float* po = out.mutable_data_ptr<float>();
  std::fill(po, po + call.count, 0.0f);
  if (call.count == 0) return out;
  const float* pg = g.const_data_ptr<float>();
  std::atomic<int64_t> bad{INT64_MAX};
  with_ids(b, [&](const auto* ids) {
    const int64_t items = call.table_count * call.bags;
    torch::stable::parallel_for(0, items, 64, [&](int64_t from, int64_t to) {
      for (int64_t item = from; item < to; ++item) {
        const PoolTable& t = call.tables[item / call.bags];
        const float* row = pg + item % call.bags * width + t.column;
        for (int64_t i = call.start(item); i < call.start(item + 1); ++i) {
          if (ids[i] < 0 || ids[i] >= t.rows) return lower_to(bad, i);
          po[i] = LIRANK_DISPATCH(row_dot, call.bits, t, (int64_t)ids[i], row);
        }
      }
    });
    if (bad != INT64_MAX) refuse_index(op, call, ids, bad);
  });
  return out;
}

Tensor quantized_embedding_bag_backward(const Tensor& grad, const Tensor& packed,
                                        const Tensor& indices, const OptionalTensor& offsets,
                                        int64_t dim, int64_t bits, bool include_last) {
  const char* op = "quantized_embedding_bag_backward";
  check_packed(op, packed, dim, bits);
  Bags b = read_bags(op, indices, offsets, include_last, std::nullopt);
  const Tensor p = to_contiguous(packed);
  const PoolTable table = table_view(p.const_data_ptr<uint8_t>(), p.size(0), dim, bits, 0);
  give_tables(b, &table, 1, bits, false, nullptr, dim);
  return weight_gradient(op, b, grad, dim);
}

Tensor quantized_embedding_bags_backward(const Tensor& grad, const Tensor& packed,
                                         const Tensor& rows, const Tensor& dims,
                                         const Tensor& indices, const Tensor& offsets,
                                         int64_t bits) {
  const char* op = "quantized_embedding_bags_backward";
  const Tensor p = to_contiguous(packed);
  int64_t width = 0;
  const std::vector<PoolTable> tables = read_tables(op, p, rows, dims, bits, &width);
  Bags b = read_table_bags(op, indices, offsets, (int64_t)tables.size(), std::nullopt);
  give_tables(b, tables.data(), (int64_t)tables.size(), bits, false, nullptr, width);
  return weight_gradient(op, b, grad, width);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def("quantize_rows(Tensor weight, int bits=8) -> (Tensor, Tensor, Tensor)");
  m.def("dequantize_rows(Tensor codes, Tensor scale, Tensor mid) -> Tensor");
  m.def("pack_rows(Tensor codes, Tensor scale, Tensor mid, int bits=8) -> Tensor");
  m.def("unpack_rows(Tensor packed, int dim, int bits=8) -> (Tensor, Tensor, Tensor)");
  m.def(
      "quantized_embedding_bag(Tensor packed, Tensor indices, Tensor? offsets, int dim, int "
      "bits=8, str mode=\"sum\", Tensor? per_sample_weights=None, bool include_last_offset=False, "
      "ScalarType output_dtype=float) -> Tensor");
  m.def(
      "quantized_embedding_bags(Tensor packed, Tensor rows, Tensor dims, Tensor indices, Tensor "
      "offsets, int bits=8, str mode=\"sum\", Tensor? per_sample_weights=None, ScalarType "
      "output_dtype=float, int total_dim=-1) -> Tensor");
  m.def(
      "quantized_embedding_bag_backward(Tensor grad, Tensor packed, Tensor indices, Tensor? "
      "offsets, int dim, int bits, bool include_last_offset) -> Tensor");
  m.def(
      "quantized_embedding_bags_backward(Tensor grad, Tensor packed, Tensor rows, Tensor dims, "
      "Tensor indices, Tensor offsets, int bits) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
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
