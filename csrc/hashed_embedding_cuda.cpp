// hashed_embedding_bag on CUDA tensors: checks, results, launches. Sparse gradients wait for the
// device: how many rows they have decides how large they are (and where the last bag ends, with
// include_last_offset, how many ids count).
#include "hashed_embedding.cuh"

#include <array>

#include "bags_cuda.h"
#include "rowwise.h"

namespace lirank {
namespace {

using gpu::HashedParams;
using gpu::RunsParams;
using Four = std::array<Tensor, 4>;

constexpr const char* kNames[4] = {"quotient_b", "remainder_b", "quotient_c", "remainder_c"};

// ---- checks ----------------------------------------------------------------------------

int64_t quotient_rows(int64_t num_buckets, int64_t num_remainders) {
  return (num_buckets + num_remainders - 1) / num_remainders;
}

void check_rule(const char* op, int64_t num_buckets, int64_t seed) {
  LIRANK_CHECK(num_buckets > 0 && num_buckets <= int64_t(1) << 32, op, "num_buckets",
               "wanted 1 to 2^32, got ", num_buckets);
  LIRANK_CHECK(seed >= 0 && seed <= int64_t(UINT32_MAX), op, "seed", "wanted 0 to 2^32 - 1, got ",
               seed);
}

void check_remainders(const char* op, const char* argument, int64_t rows) {
  LIRANK_CHECK(rows > 0 && rows <= int64_t(UINT32_MAX), op, argument,
               "wanted 1 to 2^32 - 1 rows, got ", rows);
}

void check_heights(const char* op, const Four& tables, int64_t num_buckets) {
  const int64_t remainders = tables[1].size(0);
  check_remainders(op, "remainder_b", remainders);
  for (int t = 0; t < 4; ++t) {
    const int64_t rows = t % 2 ? remainders : quotient_rows(num_buckets, remainders);
    LIRANK_CHECK(tables[t].size(0) == rows, op, kNames[t], "wanted ", rows, " rows for ",
                 num_buckets, " buckets and ", remainders, " remainders, got ", shape(tables[t]));
  }
}

void check_form(const char* op, const Four& tables) {
  check_floating(op, kNames[0], tables[0]);
  for (int t = 0; t < 4; ++t) {
    check_same_dtype(op, kNames[t], tables[t], tables[0].scalar_type());
    check_dim(op, kNames[t], tables[t], 2);
    check_together(op, kNames[t], tables[t], tables[0]);
  }
  LIRANK_CHECK(tables[0].size(1) > 0, op, kNames[0], "wanted a positive width, got ",
               shape(tables[0]));
  for (int t = 0; t < 4; ++t)
    LIRANK_CHECK(tables[t].size(1) == tables[0].size(1), op, kNames[t], "wanted width ",
                 tables[0].size(1), ", got ", shape(tables[t]));
}

void check_packed(const char* op, const Four& tables, int64_t num_buckets, int64_t dim,
                  int64_t bits) {
  LIRANK_CHECK(bits == 8 || bits == 4, op, "bits", "wanted 8 or 4, got ", bits);
  LIRANK_CHECK(dim > 0, op, "dim", "wanted a positive width, got ", dim);
  const int64_t wanted = rowwise::layout(dim, (int)bits).row_bytes;
  for (int t = 0; t < 4; ++t) {
    check_same_dtype(op, kNames[t], tables[t], ScalarType::Byte);
    check_dim(op, kNames[t], tables[t], 2);
    check_together(op, kNames[t], tables[t], tables[0]);
    LIRANK_CHECK(tables[t].size(1) == wanted, op, kNames[t], "wanted ", wanted,
                 " bytes a row for dim ", dim, " at ", bits, " bits, got ", shape(tables[t]));
  }
  check_heights(op, tables, num_buckets);
}

// ---- arguments as the kernels take them ------------------------------------------------

// Holds the tensors that the pointers point into.
struct Call {
  Four tables;
  DeviceBags ids;
  HashedParams params;
};

Call read_call(const OnDevice& on, const Four& given, int64_t dim, int64_t bits, const Tensor& ids,
               const OptionalTensor& offsets, const std::string& mode,
               const OptionalTensor& weights, bool include_last) {
  check_same_dtype(on.op, "ids", ids, ScalarType::Long);
  const ScalarType type = bits ? ScalarType::Float : given[0].scalar_type();
  Call c{given,
         read_device_bags(on.op, "ids", ids, offsets, mode, weights, include_last,
                          compute_type(type), given[0]),
         {}};
  HashedParams& p = c.params;
  for (int t = 0; t < 4; ++t) {
    if (bits) check_in_place(on.op, kNames[t], given[t]);
    p.tables.base[t] = given[t].const_data_ptr();
    p.tables.heights[t] = given[t].size(0);
    p.tables.row_stride[t] = given[t].stride(0);
    p.tables.column_stride[t] = given[t].stride(1);
  }
  p.tables.dim = dim;
  p.tables.bits = (int)bits;
  p.tables.element = element_of(type);
  p.bags = c.ids.bags;
  p.errors = on.errors;
  return c;
}

gpu::HashedSource source_of(int64_t num_buckets, int64_t num_remainders, int64_t seed,
                            bool prehashed) {
  return {murmur::row_rule((uint64_t)num_buckets, (uint32_t)num_remainders),
          (uint32_t)seed,
          prehashed,
          {}};
}

// ---- forward ---------------------------------------------------------------------------

Tensor hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                            const Tensor& quotient_b, const Tensor& remainder_b,
                            const Tensor& quotient_c, const Tensor& remainder_c,
                            int64_t num_buckets, int64_t seed, std::string mode,
                            const OptionalTensor& weights, bool include_last, bool prehashed,
                            bool /*sparse*/) {
  const OnDevice on("hashed_embedding_bag", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_form(on.op, given);
  check_heights(on.op, given, num_buckets);
  Call c = read_call(on, given, quotient_b.size(1), 0, ids, offsets, mode, weights, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  Tensor out =
      new_tensor(quotient_b, {c.params.bags.bags, quotient_b.size(1)}, quotient_b.scalar_type());
  c.params.out = out.mutable_data_ptr();
  on.check(gpu::hashed_embedding_bag_launch(c.params, on.stream));
  return out;
}

Tensor quantized_hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                                      const Tensor& quotient_b, const Tensor& remainder_b,
                                      const Tensor& quotient_c, const Tensor& remainder_c,
                                      int64_t num_buckets, int64_t dim, int64_t bits, int64_t seed,
                                      std::string mode, const OptionalTensor& weights,
                                      bool include_last, bool prehashed, ScalarType output_dtype) {
  const OnDevice on("quantized_hashed_embedding_bag", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_packed(on.op, given, num_buckets, dim, bits);
  check_output_dtype(on.op, output_dtype);
  Call c = read_call(on, given, dim, bits, ids, offsets, mode, weights, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  const ScalarType type = written_type(output_dtype);
  Tensor out = new_tensor(quotient_b, {c.params.bags.bags, dim}, type);
  c.params.out = out.mutable_data_ptr();
  c.params.out_element = element_of(type);
  on.check(gpu::hashed_embedding_bag_launch(c.params, on.stream));
  return as_type(out, output_dtype);
}

// The same gathers with rows given: what hashing costs is measured against it.
Tensor hashed_embedding_bag_of_rows(const Tensor& rows, const OptionalTensor& offsets,
                                    const Tensor& quotient_b, const Tensor& remainder_b,
                                    const Tensor& quotient_c, const Tensor& remainder_c,
                                    std::string mode, const OptionalTensor& weights,
                                    bool include_last) {
  const OnDevice on("hashed_embedding_bag_of_rows", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_form(on.op, given);
  LIRANK_CHECK(quotient_b.scalar_type() == ScalarType::Float, on.op, "quotient_b",
               "wanted torch.float32, got ", dtype_name(quotient_b.scalar_type()));
  check_same_dtype(on.op, "rows", rows, ScalarType::Long);
  LIRANK_CHECK(rows.dim() == 2 && rows.size(0) == 4, on.op, "rows", "wanted shape (4, len), got ",
               shape(rows));
  const Tensor all = to_contiguous(rows);
  Call c = read_call(on, given, quotient_b.size(1), 0, torch::stable::select(all, 0, 0), offsets,
                     mode, weights, include_last);
  for (int t = 0; t < 4; ++t)
    c.params.source.rows[t] = all.const_data_ptr<int64_t>() + t * all.size(1);
  Tensor out = new_tensor(quotient_b, {c.params.bags.bags, quotient_b.size(1)}, ScalarType::Float);
  c.params.out = out.mutable_data_ptr();
  on.check(gpu::hashed_embedding_bag_launch(c.params, on.stream));
  return out;
}

// ---- gradients of the tables -----------------------------------------------------------

// Stable, by PyTorch's own radix sort of 32 bits, which captures.
std::pair<Tensor, Tensor> sorted(const Tensor& rows) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(rows), from(std::optional<bool>(true)), from(int64_t(0)),
                                    from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// What the four gradients share. Holds the tensors that the pointers point into.
struct Gradients {
  DeviceBags ids;
  Tensor grad, keys, bag_of, partials;
  int64_t heights[4];
  RunsParams params;
};

Gradients read_gradients(const OnDevice& on, const Tensor& grad, const Tensor& ids,
                         const OptionalTensor& offsets, const OptionalTensor& weights,
                         int64_t num_buckets, int64_t num_remainders, int64_t seed,
                         const std::string& mode, bool include_last, bool prehashed) {
  check_rule(on.op, num_buckets, seed);
  check_remainders(on.op, "num_remainders", num_remainders);
  check_floating(on.op, "grad", grad);
  check_dim(on.op, "grad", grad, 2);
  check_same_dtype(on.op, "ids", ids, ScalarType::Long);
  const ScalarType type = compute_type(grad.scalar_type());
  Gradients g{read_device_bags(on.op, "ids", ids, offsets, mode, weights, include_last, type, grad),
              to_contiguous(grad),
              {},
              {},
              {},
              {},
              {}};
  const gpu::Bags& bags = g.ids.bags;
  LIRANK_CHECK(grad.size(0) == bags.bags, on.op, "grad", "wanted ", bags.bags, " rows, got ",
               shape(grad));
  LIRANK_CHECK(bags.count < INT32_MAX && bags.bags < INT32_MAX, on.op, "ids",
               "wanted fewer than 2^31 ids and bags in one backward, got ", bags.count);
  const int64_t quotients = quotient_rows(num_buckets, num_remainders);
  for (int t = 0; t < 4; ++t) g.heights[t] = t % 2 ? num_remainders : quotients;
  RunsParams& p = g.params;
  p.bags = bags;
  p.source = source_of(num_buckets, num_remainders, seed, prehashed);
  p.count = bags.count;
  p.grad = g.grad.const_data_ptr();
  p.dim = grad.size(1);
  p.element = element_of(grad.scalar_type());
  p.errors = on.errors;
  return g;
}

int64_t chunks_of(int64_t count) { return (count + gpu::kChunk - 1) / gpu::kChunk; }

// The workspace (kernels/hashed_embedding.cu states it), and the bag of every id.
void start(const OnDevice& on, Gradients& g) {
  RunsParams& p = g.params;
  const ScalarType type = compute_type(g.grad.scalar_type());
  g.keys = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.bag_of = new_tensor(g.ids.ids, {p.count}, ScalarType::Int);
  g.partials = new_tensor(g.grad, {chunks_of(p.count), 2, p.dim}, type);
  p.keys = g.keys.mutable_data_ptr<int32_t>();
  p.bag_of = g.bag_of.mutable_data_ptr<int32_t>();
  p.partials = g.partials.mutable_data_ptr();
  if (p.count > 0) on.check(cudaMemsetAsync(p.bag_of, 0xff, p.count * sizeof(int32_t), on.stream));
  on.check(gpu::hashed_bags_launch(p, on.stream));
}

// The ids in the order of their rows in one table.
std::pair<Tensor, Tensor> sort_rows(const OnDevice& on, Gradients& g, int table) {
  g.params.table = table;
  on.check(gpu::hashed_rows_launch(g.params, on.stream));
  return sorted(g.keys);
}

void sum_rows(const OnDevice& on, RunsParams p, const std::pair<Tensor, Tensor>& entries,
              Tensor& out) {
  p.sorted = entries.first.const_data_ptr<int32_t>();
  p.positions = entries.second.const_data_ptr<int64_t>();
  p.out = out.mutable_data_ptr();
  on.check(gpu::hashed_runs_launch(p, on.stream));
}

Tensor dense_gradient(const OnDevice& on, Gradients& g, int table) {
  Tensor out = torch::stable::new_zeros(g.grad, {g.heights[table], g.params.dim});
  sum_rows(on, g.params, sort_rows(on, g, table), out);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_dense(
    const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
    const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders, int64_t seed,
    std::string mode, bool include_last, bool prehashed) {
  const OnDevice on("hashed_embedding_bag_backward", "grad", grad);
  Gradients g = read_gradients(on, grad, ids, offsets, weights, num_buckets, num_remainders, seed,
                               mode, include_last, prehashed);
  start(on, g);
  Four out;
  for (int t = 0; t < 4; ++t) out[t] = dense_gradient(on, g, t);
  return {out[0], out[1], out[2], out[3]};
}

// Ids in front of the end of the last bag: the others must not add rows. One wait, where the end
// is a number on the device.
int64_t used_ids(const OnDevice& on, const gpu::Bags& b, bool include_last) {
  if (b.bags == 0) return 0;
  if (b.offsets == nullptr || !include_last) return b.count;
  const int64_t at = b.offset_count - 1;
  const int64_t end = b.wide_offsets ? on.read<int64_t>((const int64_t*)b.offsets + at)
                                     : on.read<int32_t>((const int32_t*)b.offsets + at);
  return end < 0 ? 0 : end < b.count ? end : b.count;  // a bad one is reported by the kernels
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_sparse(
    const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
    const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders, int64_t seed,
    std::string mode, bool include_last, bool prehashed) {
  const OnDevice on("hashed_embedding_bag_backward_sparse", "grad", grad);
  Gradients g = read_gradients(on, grad, ids, offsets, weights, num_buckets, num_remainders, seed,
                               mode, include_last, prehashed);
  if (on.capturing())
    throw std::runtime_error(std::string("lirank::") + on.op +
                             ": sparse gradients wait for the device, which no CUDA graph can "
                             "hold: use sparse=False");
  RunsParams& p = g.params;
  p.count = used_ids(on, p.bags, include_last);
  start(on, g);
  // Both quotient tables are counted before the one wait for their numbers of rows.
  const int64_t chunks = chunks_of(p.count);
  Tensor starts = torch::stable::new_zeros(g.ids.ids, {2, chunks + 1});
  std::pair<Tensor, Tensor> entries[2];
  int64_t rows[2];
  for (int half = 0; half < 2; ++half) {
    entries[half] = sort_rows(on, g, 2 * half);
    RunsParams q = p;
    q.sorted = entries[half].first.const_data_ptr<int32_t>();
    q.starts = starts.mutable_data_ptr<int64_t>() + half * (chunks + 1);
    on.check(gpu::hashed_count_launch(q, on.stream));
  }
  for (int half = 0; half < 2; ++half)
    rows[half] = on.read<int64_t>(starts.const_data_ptr<int64_t>() + (half + 1) * (chunks + 1) - 1);
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

// ---- gradient of per_sample_weights ----------------------------------------------------

Tensor weight_gradient(const OnDevice& on, Call& c, const Tensor& grad, ScalarType type) {
  const int64_t bags = c.params.bags.bags, dim = c.params.tables.dim;
  check_floating(on.op, "grad", grad);
  check_together(on.op, "grad", grad, c.tables[0]);
  LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == bags && grad.size(1) == dim, on.op, "grad",
               "wanted shape (", bags, ", ", dim, "), got ", shape(grad));
  const Tensor g = as_type(grad, type);
  Tensor out = torch::stable::new_zeros(c.ids.ids, c.ids.ids.sizes(), type);
  c.params.grad = g.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  on.check(gpu::hashed_weight_gradient_launch(c.params, on.stream));
  return out;
}

Tensor backward_weights(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                        const Tensor& quotient_b, const Tensor& remainder_b,
                        const Tensor& quotient_c, const Tensor& remainder_c, int64_t num_buckets,
                        int64_t seed, bool include_last, bool prehashed) {
  const OnDevice on("hashed_embedding_bag_backward_weights", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_form(on.op, given);
  check_heights(on.op, given, num_buckets);
  Call c =
      read_call(on, given, quotient_b.size(1), 0, ids, offsets, "sum", std::nullopt, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  return weight_gradient(on, c, grad, compute_type(quotient_b.scalar_type()));
}

Tensor quantized_backward_weights(const Tensor& grad, const Tensor& ids,
                                  const OptionalTensor& offsets, const Tensor& quotient_b,
                                  const Tensor& remainder_b, const Tensor& quotient_c,
                                  const Tensor& remainder_c, int64_t num_buckets, int64_t dim,
                                  int64_t bits, int64_t seed, bool include_last, bool prehashed) {
  const OnDevice on("quantized_hashed_embedding_bag_backward", "quotient_b", quotient_b);
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(on.op, num_buckets, seed);
  check_packed(on.op, given, num_buckets, dim, bits);
  Call c = read_call(on, given, dim, bits, ids, offsets, "sum", std::nullopt, include_last);
  c.params.source = source_of(num_buckets, remainder_b.size(0), seed, prehashed);
  return weight_gradient(on, c, grad, ScalarType::Float);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lirank, CUDA, m) {
  m.impl("hashed_embedding_bag", TORCH_BOX(&hashed_embedding_bag));
  m.impl("quantized_hashed_embedding_bag", TORCH_BOX(&quantized_hashed_embedding_bag));
  m.impl("hashed_embedding_bag_backward", TORCH_BOX(&backward_dense));
  m.impl("hashed_embedding_bag_backward_sparse", TORCH_BOX(&backward_sparse));
  m.impl("hashed_embedding_bag_backward_weights", TORCH_BOX(&backward_weights));
  m.impl("quantized_hashed_embedding_bag_backward", TORCH_BOX(&quantized_backward_weights));
  m.impl("hashed_embedding_bag_of_rows", TORCH_BOX(&hashed_embedding_bag_of_rows));
}

}  // namespace lirank
