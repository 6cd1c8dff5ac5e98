// Look-ups in row-wise quantized tables on the CPU.
#include "quantized_embedding_ops.h"

#include "library/cpu_backend.h"
#include "library/lowest.h"
#include "simd/tables/quantized_embedding_kernels.h"

#include <algorithm>
#include <vector>

namespace lirank {
namespace {

using rowwise::Layout;

// A call whose look-ups take fewer nanoseconds than this, as estimated below, stays on one thread.
// A sleeping thread wakes after 20 to 40 us on a virtual machine: 5,000 rows of 24 bytes in cache,
// in bags of one, took 31 us on one thread and 40 on two.
constexpr int64_t kOneThread = 50'000;
// If all tables of a call together have more bytes than this, their rows come from memory. A thread
// then reads a cache line in 12 ns. Otherwise it reads 15 bytes per ns, which is also the rate at
// which results are written.
constexpr int64_t kInCache = 16 << 20;

[[noreturn]] void refuse_index(const char* op, const PoolCall& call, int64_t at) {
  int64_t table = 0;
  while (table + 1 < call.table_count && call.start((table + 1) * call.bags.bag_count) <= at)
    ++table;
  std::ostringstream text;
  text << "lirank::" << op << ": indices[" << at << "] = " << call.bags.id(at)
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
  return 1 + call.bags.id_count * each + items * (width / call.table_count) * 4 / 15;
}

// The tables of a call, and the tensor that holds them.
struct PoolTables {
  Tensor packed;
  std::vector<PoolTable> tables;
  int bits;
  int64_t count, width;
};

int64_t pool_items(const PoolCall& call, int64_t from, int64_t to) {
  return call.bits == 8 ? LIRANK_DISPATCH(pool_8bit, call, from, to)
                        : LIRANK_DISPATCH(pool_4bit, call, from, to);
}

PoolCall call_of(const PoolTables& t, const Bags& bags, float* out) {
  return {t.tables.data(), t.count, t.bits, bags, out, t.width};
}

struct Cpu : CpuBackend {
  using Tables = PoolTables;

  static Tables one_table(const Device&, const Tensor& packed, int64_t dim, int bits) {
    const Tensor p = to_contiguous(packed);
    return {p, {table_view(p.const_data_ptr<uint8_t>(), p.size(0), dim, bits, 0)}, bits, 1, dim};
  }

  // Tables end to end, or each starting on 64 bytes.
  static Tables many_tables(const Device& on, const Tensor& packed, const Tensor& rows,
                            const Tensor& dims, int bits, int64_t total_dim) {
    const Tensor p = to_contiguous(packed);
    const int64_t *n = rows.const_data_ptr<int64_t>(), *dim = dims.const_data_ptr<int64_t>();
    const int64_t count = rows.size(0);
    const TableSizes sizes = check_table_sizes(on.op, n, dim, count, bits, p.numel(), kWidest);
    LIRANK_CHECK(total_dim < 0 || total_dim == sizes.width, on.op, "total_dim",
                 "wanted the sum of dims ", sizes.width, ", got ", total_dim);
    Tables all{p, {}, bits, count, sizes.width};
    const uint8_t* base = p.const_data_ptr<uint8_t>();
    for (int64_t t = 0, column = 0; t < count; column += dim[t++]) {
      all.tables.push_back(table_view(base, n[t], dim[t], bits, column));
      const int64_t bytes = n[t] * rowwise::layout(dim[t], bits).row_bytes;
      base += sizes.aligned ? aligned_to_64(bytes) : bytes;
    }
    return all;
  }

  // Not needed: the widths can be read, and a gradient that does not fit them is refused by name.
  static int64_t known_width(const Tensor& /*grad*/) { return -1; }

  // A task owns a run of items. Every result is written by one task alone, in the order of ids.
  static Tensor pool(const Device& on, const Tables& tables, const BagTensors& bags,
                     ScalarType output_dtype) {
    Tensor out = new_tensor({bags.view.bag_count, tables.width}, ScalarType::Float);
    const PoolCall call = call_of(tables, bags.view, out.mutable_data_ptr<float>());
    const int64_t items = call.items();
    if (items > 0) {
      const int64_t ns = estimated_ns(call, items);
      Lowest bad;
      torch::stable::parallel_for(0, items, 1 + items * kOneThread / ns,
                                  [&](int64_t begin, int64_t end) {
                                    const int64_t at = pool_items(call, begin, end);
                                    if (at >= 0) bad.lower_to(at);
                                  });
      if (bad.get() >= 0) refuse_index(on.op, call, bad.get());
    }
    return as_float_type(out, output_dtype);
  }

  // The forward has checked the ids. They are checked again, because this is an op of its own.
  static Tensor weight_gradient(const Device& on, const Tables& tables, const BagTensors& bags,
                                const Tensor& grad) {
    Tensor out = empty_like_type(bags.ids, ScalarType::Float);
    float* po = out.mutable_data_ptr<float>();
    std::fill(po, po + bags.view.id_count, 0.0f);
    if (bags.view.id_count == 0) return out;
    const PoolCall call = call_of(tables, bags.view, nullptr);
    const float* pg = grad.const_data_ptr<float>();
    Lowest bad;
    torch::stable::parallel_for(0, call.items(), 64, [&](int64_t from, int64_t to) {
      for (int64_t item = from; item < to; ++item) {
        const PoolTable& t = call.tables[item / call.bags.bag_count];
        const float* row = pg + item % call.bags.bag_count * tables.width + t.column;
        for (int64_t i = call.start(item); i < call.start(item + 1); ++i) {
          const int64_t id = call.bags.id(i);
          if (id < 0 || id >= t.rows) return bad.lower_to(i);
          po[i] = LIRANK_DISPATCH(row_dot, call.bits, t, id, row);
        }
      }
    });
    if (bad.get() >= 0) refuse_index(on.op, call, bad.get());
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_quantized_bags(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_quantized_bags<Cpu>(m); }

}  // namespace lirank
