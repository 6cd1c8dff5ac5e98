// hashed_embedding_bag on the CPU: look-ups, and the gradients of weights.
#include "hashed_embedding_ops.h"

#include "library/cpu_backend.h"
#include "simd/tables/hashed_embedding_kernels.h"

#include <algorithm>

namespace lirank {
namespace {

using hashed::FloatTables;
using hashed::PackedTables;

// A task reads at least so many bytes of rows. With fewer a second thread costs more than it saves:
// waking it takes about 5 us.
constexpr int64_t kBytesPerTask = 256 * 1024;

FourTables contiguous_tables(const FourTables& tables) {
  return {to_contiguous(tables[0]), to_contiguous(tables[1]), to_contiguous(tables[2]),
          to_contiguous(tables[3])};
}

FloatTables view(const FourTables& tables) {
  FloatTables t{{}, tables[0].size(1), dtype_of(tables[0].scalar_type())};
  for (int i = 0; i < 4; ++i) t.base[i] = tables[i].const_data_ptr();
  return t;
}

PackedTables view_packed(const FourTables& tables, int64_t dim, int bits) {
  const rowwise::Layout l = rowwise::layout(dim, bits);
  PackedTables t{{}, {}, l.code_stride, l.pair_stride, dim, bits};
  for (int i = 0; i < 4; ++i) {
    t.codes[i] = tables[i].const_data_ptr<uint8_t>();
    t.pairs[i] = t.codes[i] + rowwise::first_pair(l, tables[i].size(0));
  }
  return t;
}

// Bags per task, such that a task reads about kBytesPerTask.
int64_t grain_of(const Bags& b, int64_t row_bytes) {
  const int64_t ids = b.bag_count > 0 ? b.start(b.bag_count) : 0;
  const int64_t each = 1 + ids / std::max<int64_t>(1, b.bag_count);
  return 1 + kBytesPerTask / (each * 4 * row_bytes);
}

struct Cpu : CpuBackend {
  static Tensor pool(const Device&, const HashedCall& call, ScalarType output_dtype) {
    const FourTables tables = contiguous_tables(call.tables);
    const Bags& bags = call.bags.view;
    const ScalarType type = call.bits ? ScalarType::Float : compute_type(tables[0].scalar_type());
    Tensor out = new_tensor({bags.bag_count, call.dim}, type);
    void* po = out.mutable_data_ptr();
    if (call.bits) {
      const PackedTables t = view_packed(tables, call.dim, call.bits);
      over_bags(call, tables, [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(pool_packed, t, call.rule, bags, from, to, po);
      });
    } else {
      const FloatTables t = view(tables);
      over_bags(call, tables, [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(pool_hashed, t, call.rule, bags, from, to, po);
      });
    }
    return as_float_type(out, output_dtype);
  }

  // grad, and the result, are of `type`.
  static Tensor weight_gradient(const Device&, const HashedCall& call, const Tensor& grad,
                                ScalarType type) {
    const FourTables tables = contiguous_tables(call.tables);
    const Bags& bags = call.bags.view;
    Tensor out = empty_like_type(call.bags.ids, type);
    torch::stable::zero_(out);
    const void* pg = grad.const_data_ptr();
    void* po = out.mutable_data_ptr();
    if (call.bits) {
      const PackedTables t = view_packed(tables, call.dim, call.bits);
      over_bags(call, tables, [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(dot_quantized, t, call.rule, bags, from, to, pg, po);
      });
    } else {
      const FloatTables t = view(tables);
      over_bags(call, tables, [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(dot_hashed, t, call.rule, bags, from, to, pg, po);
      });
    }
    return out;
  }

 private:
  template <typename Run>
  static void over_bags(const HashedCall& call, const FourTables& tables, const Run& run) {
    const int64_t row_bytes = tables[0].size(1) * (int64_t)tables[0].element_size();
    torch::stable::parallel_for(0, call.bags.view.bag_count, grain_of(call.bags.view, row_bytes),
                                run);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_hashed_bags(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_hashed_bags<Cpu>(m); }

}  // namespace lirank
