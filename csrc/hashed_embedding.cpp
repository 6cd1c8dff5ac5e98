// hashed_embedding_bag: checks, CPU kernels, schemas.
// Source: LiRank (arXiv 2402.06859), vocabulary compression.
#include "checks.h"
#include "convert.h"
#include "hashed_embedding_kernels.h"
#include "quantized_embedding_layout.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

namespace lirank {
namespace {

using hashed::Bags;
using hashed::Element;
using hashed::PackedTables;
using hashed::Runs;
using hashed::Source;
using hashed::Tables;
using Four = std::array<Tensor, 4>;

constexpr const char* kNames[4] = {"quotient_b", "remainder_b", "quotient_c", "remainder_c"};
// Bytes of rows below which a second thread costs more than it brings (a wake-up is ~5 us).
constexpr int64_t kBytesPerTask = 256 * 1024;
// Entries per task of a gradient: fixed, so that sums do not depend on the number of threads.
constexpr int64_t kEntriesPerTask = 4096;

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
    LIRANK_CHECK(tables[t].size(1) == wanted, op, kNames[t], "wanted ", wanted,
                 " bytes a row for dim ", dim, " at ", bits, " bits, got ", shape(tables[t]));
  }
  check_heights(op, tables, num_buckets);
}

template <typename Offset>
void check_offset_values(const char* op, const Offset* offsets, int64_t n, int64_t count) {
  if (n == 0) return;
  LIRANK_CHECK(offsets[0] == 0, op, "offsets", "wanted 0 first, got ", offsets[0]);
  for (int64_t i = 1; i < n; ++i)
    LIRANK_CHECK(offsets[i] >= offsets[i - 1], op, "offsets", "wanted no decrease, got ",
                 offsets[i], " after ", offsets[i - 1], " at position ", i);
  LIRANK_CHECK((int64_t)offsets[n - 1] <= count, op, "offsets", "wanted at most ", count,
               " (the number of ids), got ", offsets[n - 1], " at position ", n - 1);
}

// ---- arguments as the kernels take them ------------------------------------------------

// Holds the tensors that the pointers point into.
struct Call {
  Tensor ids, offsets, weights;
  Source source;
  Bags bags;
  int64_t used = 0;  // ids in bags; those behind the last bag are not

  // Bags per task, such that a task reads about kBytesPerTask.
  int64_t grain(int64_t row_bytes) const {
    const int64_t each = 1 + used / std::max<int64_t>(1, bags.bags);
    return 1 + kBytesPerTask / (each * 4 * row_bytes);
  }
};

void read_weights(const char* op, const char* ids_name, const OptionalTensor& weights,
                  ScalarType type, Call& call) {
  if (!weights) return;
  check_floating(op, "per_sample_weights", *weights);
  bool same = weights->dim() == call.ids.dim();
  for (int64_t i = 0; same && i < call.ids.dim(); ++i) same = weights->size(i) == call.ids.size(i);
  LIRANK_CHECK(same, op, "per_sample_weights", "wanted the shape of ", ids_name, " ",
               shape(call.ids), ", got ", shape(*weights));
  call.weights = as_float_type(*weights, type);
  call.bags.weights = call.weights.const_data_ptr();
}

void read_offsets(const char* op, const OptionalTensor& offsets, bool include_last, Call& call) {
  Bags& b = call.bags;
  if (!offsets) {
    const Tensor& ids = call.ids;
    LIRANK_CHECK(ids.dim() == 1 || ids.dim() == 2, op, "ids",
                 "wanted 1 or 2 dimensions without offsets, got shape ", shape(ids));
    LIRANK_CHECK(!include_last, op, "include_last_offset", "wanted offsets with it, got None");
    b.bags = ids.size(0);
    b.fixed = ids.dim() == 1 ? 1 : ids.size(1);
    return;
  }
  check_dim(op, "ids", call.ids, 1);
  check_index_dtype(op, "offsets", *offsets);
  check_dim(op, "offsets", *offsets, 1);
  LIRANK_CHECK(!include_last || offsets->numel() > 0, op, "offsets",
               "wanted at least one with include_last_offset, got shape ", shape(*offsets));
  call.offsets = to_contiguous(*offsets);
  b.offsets = call.offsets.const_data_ptr();
  b.offset_count = call.offsets.numel();
  b.wide = offsets->scalar_type() == ScalarType::Long;
  b.bags = b.offset_count - (include_last ? 1 : 0);
  if (b.wide)
    check_offset_values(op, (const int64_t*)b.offsets, b.offset_count, b.count);
  else
    check_offset_values(op, (const int32_t*)b.offsets, b.offset_count, b.count);
}

Call read_bags(const char* op, const Tensor& ids, const OptionalTensor& offsets,
               const std::string& mode, const OptionalTensor& weights, bool include_last,
               ScalarType type) {
  LIRANK_CHECK(mode == "sum" || mode == "mean", op, "mode", "wanted 'sum' or 'mean', got '", mode,
               "'");
  LIRANK_CHECK(!(weights && mode == "mean"), op, "per_sample_weights",
               "wanted mode 'sum' with weights, got '", mode, "'");
  check_same_dtype(op, "ids", ids, ScalarType::Long);
  Call call;
  call.ids = to_contiguous(ids);
  call.source.ids = call.ids.const_data_ptr<int64_t>();
  call.bags.count = ids.numel();
  call.bags.mean = mode == "mean";
  read_offsets(op, offsets, include_last, call);
  read_weights(op, "ids", weights, type, call);
  call.used = call.bags.bags > 0 ? call.bags.start(call.bags.bags) : 0;
  return call;
}

void set_rule(Call& call, int64_t num_buckets, int64_t num_remainders, int64_t seed,
              bool prehashed) {
  call.source.rule = murmur::row_rule((uint64_t)num_buckets, (uint32_t)num_remainders);
  call.source.seed = (uint32_t)seed;
  call.source.prehashed = prehashed;
}

Four contiguous_tables(const Four& tables) {
  return {to_contiguous(tables[0]), to_contiguous(tables[1]), to_contiguous(tables[2]),
          to_contiguous(tables[3])};
}

Element element_of(ScalarType type) {
  return type == ScalarType::Double     ? Element::float64
         : type == ScalarType::Half     ? Element::float16
         : type == ScalarType::BFloat16 ? Element::bfloat16
                                        : Element::float32;
}

int64_t element_bytes(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

Tables view(const Four& tables) {
  Tables t{{}, tables[0].size(1), element_of(tables[0].scalar_type())};
  for (int i = 0; i < 4; ++i) t.base[i] = tables[i].const_data_ptr();
  return t;
}

PackedTables view_packed(const Four& tables, int64_t dim, int64_t bits) {
  const rowwise::Layout l = rowwise::layout(dim, (int)bits);
  PackedTables t{{}, {}, l.code_stride, l.pair_stride, dim, (int)bits};
  for (int i = 0; i < 4; ++i) {
    t.codes[i] = tables[i].const_data_ptr<uint8_t>();
    t.pairs[i] = t.codes[i] + rowwise::first_pair(l, tables[i].size(0));
  }
  return t;
}

// ---- forward ---------------------------------------------------------------------------

Tensor hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                            const Tensor& quotient_b, const Tensor& remainder_b,
                            const Tensor& quotient_c, const Tensor& remainder_c,
                            int64_t num_buckets, int64_t seed, std::string mode,
                            const OptionalTensor& weights, bool include_last, bool prehashed,
                            bool /*sparse*/) {
  const char* op = "hashed_embedding_bag";
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(op, num_buckets, seed);
  check_form(op, given);
  check_heights(op, given, num_buckets);
  const Four tables = contiguous_tables(given);
  const ScalarType type = quotient_b.scalar_type();
  Call call = read_bags(op, ids, offsets, mode, weights, include_last, compute_type(type));
  set_rule(call, num_buckets, remainder_b.size(0), seed, prehashed);
  const Tables t = view(tables);
  Tensor out = new_tensor({call.bags.bags, t.dim}, compute_type(type));
  void* po = out.mutable_data_ptr();
  torch::stable::parallel_for(
      0, call.bags.bags, call.grain(t.dim * element_bytes(type)), [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(pool_hashed, t, call.source, call.bags, from, to, po);
      });
  return as_float_type(out, type);
}

Tensor quantized_hashed_embedding_bag(const Tensor& ids, const OptionalTensor& offsets,
                                      const Tensor& quotient_b, const Tensor& remainder_b,
                                      const Tensor& quotient_c, const Tensor& remainder_c,
                                      int64_t num_buckets, int64_t dim, int64_t bits, int64_t seed,
                                      std::string mode, const OptionalTensor& weights,
                                      bool include_last, bool prehashed, ScalarType output_dtype) {
  const char* op = "quantized_hashed_embedding_bag";
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(op, num_buckets, seed);
  check_packed(op, given, num_buckets, dim, bits);
  LIRANK_CHECK(is_floating(output_dtype), op, "output_dtype",
               "wanted float32, float64, float16 or bfloat16, got ", dtype_name(output_dtype));
  const Four tables = contiguous_tables(given);
  Call call = read_bags(op, ids, offsets, mode, weights, include_last, ScalarType::Float);
  set_rule(call, num_buckets, remainder_b.size(0), seed, prehashed);
  const PackedTables t = view_packed(tables, dim, bits);
  Tensor out = new_tensor({call.bags.bags, dim}, ScalarType::Float);
  void* po = out.mutable_data_ptr();
  torch::stable::parallel_for(
      0, call.bags.bags, call.grain(tables[0].size(1)), [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(pool_packed, t, call.source, call.bags, from, to, po);
      });
  return as_float_type(out, output_dtype);
}

// ---- backward --------------------------------------------------------------------------
//
// Per table the ids are sorted by row (a radix sort, stable, so positions rise within a row) and
// each run of one row is summed in registers: the 1,000 remainder rows, hit by every id, cost
// reading the gradient of each id's bag, from the cache, and no shared writes. Tried before: one
// private copy of the remainder tables per task, 2 x 1,000 x dim of traffic each to merge.

struct Sorter {
  std::vector<uint64_t> entries, spare;
  std::vector<uint32_t> counts;

  // `list` has n rows below `height`.
  void sort(const uint32_t* list, int64_t n, int64_t height) {
    entries.resize(n);
    spare.resize(n);
    int bits = 0;
    while (bits < 32 && (int64_t(1) << bits) < height) ++bits;
    const int passes = (bits + 11) / 12;
    const int digit = passes ? (bits + passes - 1) / passes : 1;
    const int64_t chunk = std::max<int64_t>(32768, n / 64);
    const int64_t tasks = (n + chunk - 1) / chunk;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from * chunk; i < std::min(n, to * chunk); ++i)
        entries[i] = hashed::entry(list[i], (uint32_t)i);
    });
    for (int pass = 0; pass < passes; ++pass) scatter(n, chunk, tasks, 32 + pass * digit, digit);
  }

  void scatter(int64_t n, int64_t chunk, int64_t tasks, int shift, int digit) {
    const int64_t values = int64_t(1) << digit;
    const uint64_t mask = (uint64_t)values - 1;
    counts.assign((size_t)(tasks * values), 0);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; ++task)
        for (int64_t i = task * chunk; i < std::min(n, (task + 1) * chunk); ++i)
          ++counts[task * values + ((entries[i] >> shift) & mask)];
    });
    uint32_t total = 0;
    for (int64_t v = 0; v < values; ++v)
      for (int64_t task = 0; task < tasks; ++task) {
        const uint32_t here = counts[task * values + v];
        counts[task * values + v] = total;
        total += here;
      }
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; ++task)
        for (int64_t i = task * chunk; i < std::min(n, (task + 1) * chunk); ++i)
          spare[counts[task * values + ((entries[i] >> shift) & mask)]++] = entries[i];
    });
    entries.swap(spare);
  }
};

// What the gradients of all four tables are made from.
struct Gradients {
  Call call;
  Tensor grad;  // of each bag; divided by its length for the mean
  ScalarType type;
  int64_t dim = 0, heights[4] = {};
  std::vector<uint32_t> rows[4], bag_of;
};

void divide_by_length(const Bags& b, Tensor& grad, int64_t dim) {
  const auto divide = [&](auto* g) {
    for (int64_t bag = 0; bag < b.bags; ++bag) {
      const int64_t length = std::max<int64_t>(1, b.start(bag + 1) - b.start(bag));
      for (int64_t c = 0; c < dim; ++c) g[bag * dim + c] /= length;
    }
  };
  if (grad.scalar_type() == ScalarType::Double)
    divide(grad.mutable_data_ptr<double>());
  else
    divide(grad.mutable_data_ptr<float>());
}

void list_rows(Gradients& g) {
  const int64_t n = g.call.used;
  uint32_t* lists[4];
  for (int t = 0; t < 4; ++t) {
    g.rows[t].resize(n);
    lists[t] = g.rows[t].data();
  }
  g.bag_of.resize(n);
  const int64_t step = 4096;
  torch::stable::parallel_for(0, (n + step - 1) / step, 8, [&](int64_t from, int64_t to) {
    LIRANK_DISPATCH(hash_rows, g.call.source, from * step, std::min(n, to * step), lists);
  });
  torch::stable::parallel_for(0, g.call.bags.bags, 4096, [&](int64_t from, int64_t to) {
    for (int64_t bag = from; bag < to; ++bag)
      std::fill(g.bag_of.begin() + g.call.bags.start(bag),
                g.bag_of.begin() + g.call.bags.start(bag + 1), (uint32_t)bag);
  });
}

Gradients read_gradients(const char* op, const Tensor& grad, const Tensor& ids,
                         const OptionalTensor& offsets, const OptionalTensor& weights,
                         int64_t num_buckets, int64_t num_remainders, int64_t seed,
                         const std::string& mode, bool include_last, bool prehashed) {
  check_rule(op, num_buckets, seed);
  check_remainders(op, "num_remainders", num_remainders);
  check_floating(op, "grad", grad);
  Gradients g;
  g.type = compute_type(grad.scalar_type());
  g.call = read_bags(op, ids, offsets, mode, weights, include_last, g.type);
  check_dim(op, "grad", grad, 2);
  LIRANK_CHECK(grad.size(0) == g.call.bags.bags, op, "grad", "wanted ", g.call.bags.bags,
               " rows, got ", shape(grad));
  LIRANK_CHECK(g.call.bags.count <= int64_t(UINT32_MAX), op, "ids",
               "wanted fewer than 2^32 of them in one backward, got ", g.call.bags.count);
  set_rule(g.call, num_buckets, num_remainders, seed, prehashed);
  g.dim = grad.size(1);
  g.grad = as_float_type(grad, g.type);
  if (g.call.bags.mean) {
    g.grad = torch::stable::clone(g.grad);
    divide_by_length(g.call.bags, g.grad, g.dim);
  }
  for (int t = 0; t < 4; ++t)
    g.heights[t] = t % 2 ? num_remainders : quotient_rows(num_buckets, num_remainders);
  list_rows(g);
  return g;
}

bool starts_run(const std::vector<uint64_t>& entries, int64_t i) {
  return i == 0 || entries[i] >> 32 != entries[i - 1] >> 32;
}

// Runs that start before each task's entries; the last number is that of all runs.
std::vector<int64_t> runs_before(const std::vector<uint64_t>& entries, int64_t tasks) {
  std::vector<int64_t> before(tasks + 1, 0);
  const int64_t n = (int64_t)entries.size();
  torch::stable::parallel_for(0, tasks, 8, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task)
      for (int64_t i = task * kEntriesPerTask; i < std::min(n, (task + 1) * kEntriesPerTask); ++i)
        before[task + 1] += starts_run(entries, i);
  });
  for (int64_t task = 0; task < tasks; ++task) before[task + 1] += before[task];
  return before;
}

template <typename T>
void add_row(T* to, const T* from, int64_t dim) {
  for (int64_t c = 0; c < dim; ++c) to[c] += from[c];
}

// Sums the runs of sorted entries; parts of runs that cross tasks are added in their order.
void sum_all(const Gradients& g, const std::vector<uint64_t>& entries,
             const std::vector<int64_t>& before, Runs r) {
  const bool wide = g.type == ScalarType::Double;
  const int64_t n = (int64_t)entries.size(), tasks = (int64_t)before.size() - 1;
  const int64_t bytes = g.dim * element_bytes(g.type);
  std::vector<char> carries((size_t)(tasks * bytes));
  std::vector<char> carried((size_t)tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task)
      carried[task] = LIRANK_DISPATCH(sum_runs, wide, r, task * kEntriesPerTask,
                                      std::min(n, (task + 1) * kEntriesPerTask), before[task],
                                      carries.data() + task * bytes);
  });
  for (int64_t task = 0; task < tasks; ++task) {
    if (!carried[task]) continue;
    const int64_t row = (int64_t)(entries[task * kEntriesPerTask] >> 32);
    char* to = (char*)r.out + (r.rows ? before[task] - 1 : row) * bytes;
    const char* from = carries.data() + task * bytes;
    if (wide)
      add_row((double*)to, (const double*)from, g.dim);
    else
      add_row((float*)to, (const float*)from, g.dim);
  }
}

Runs runs_of(const Gradients& g, const std::vector<uint64_t>& entries) {
  return {entries.data(), g.bag_of.data(), g.grad.const_data_ptr(), g.call.bags.weights, g.dim,
          nullptr,        nullptr};
}

Tensor dense_gradient(const Gradients& g, Sorter& sorter, int table, ScalarType type) {
  sorter.sort(g.rows[table].data(), g.call.used, g.heights[table]);
  Tensor out = new_tensor({g.heights[table], g.dim}, g.type);
  torch::stable::zero_(out);
  const int64_t tasks = (g.call.used + kEntriesPerTask - 1) / kEntriesPerTask;
  Runs r = runs_of(g, sorter.entries);
  r.out = out.mutable_data_ptr();
  sum_all(g, sorter.entries, std::vector<int64_t>(tasks + 1, 0), r);
  return as_float_type(out, type);
}

std::pair<Tensor, Tensor> sparse_gradient(const Gradients& g, Sorter& sorter, int table,
                                          ScalarType type) {
  sorter.sort(g.rows[table].data(), g.call.used, g.heights[table]);
  const int64_t tasks = (g.call.used + kEntriesPerTask - 1) / kEntriesPerTask;
  const std::vector<int64_t> before = runs_before(sorter.entries, tasks);
  Tensor rows = new_tensor({before.back()}, ScalarType::Long);
  Tensor out = new_tensor({before.back(), g.dim}, g.type);
  Runs r = runs_of(g, sorter.entries);
  r.out = out.mutable_data_ptr();
  r.rows = rows.mutable_data_ptr<int64_t>();
  sum_all(g, sorter.entries, before, r);
  return {rows, as_float_type(out, type)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_dense(
    const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
    const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders, int64_t seed,
    std::string mode, bool include_last, bool prehashed) {
  const Gradients g =
      read_gradients("hashed_embedding_bag_backward", grad, ids, offsets, weights, num_buckets,
                     num_remainders, seed, mode, include_last, prehashed);
  const ScalarType type = grad.scalar_type();
  Sorter sorter;
  Tensor qb = dense_gradient(g, sorter, 0, type), rb = dense_gradient(g, sorter, 1, type);
  Tensor qc = dense_gradient(g, sorter, 2, type), rc = dense_gradient(g, sorter, 3, type);
  return {qb, rb, qc, rc};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_sparse(
    const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
    const OptionalTensor& weights, int64_t num_buckets, int64_t num_remainders, int64_t seed,
    std::string mode, bool include_last, bool prehashed) {
  const Gradients g =
      read_gradients("hashed_embedding_bag_backward_sparse", grad, ids, offsets, weights,
                     num_buckets, num_remainders, seed, mode, include_last, prehashed);
  const ScalarType type = grad.scalar_type();
  Sorter sorter;
  auto [rows_b, values_b] = sparse_gradient(g, sorter, 0, type);
  Tensor remainder_b = dense_gradient(g, sorter, 1, type);
  auto [rows_c, values_c] = sparse_gradient(g, sorter, 2, type);
  Tensor remainder_c = dense_gradient(g, sorter, 3, type);
  return {rows_b, values_b, remainder_b, rows_c, values_c, remainder_c};
}

Tensor read_grad(const char* op, const Tensor& grad, const Call& call, int64_t dim,
                 ScalarType type) {
  check_floating(op, "grad", grad);
  LIRANK_CHECK(grad.dim() == 2 && grad.size(0) == call.bags.bags && grad.size(1) == dim, op, "grad",
               "wanted shape (", call.bags.bags, ", ", dim, "), got ", shape(grad));
  return as_float_type(grad, type);
}

Tensor backward_weights(const Tensor& grad, const Tensor& ids, const OptionalTensor& offsets,
                        const Tensor& quotient_b, const Tensor& remainder_b,
                        const Tensor& quotient_c, const Tensor& remainder_c, int64_t num_buckets,
                        int64_t seed, bool include_last, bool prehashed) {
  const char* op = "hashed_embedding_bag_backward_weights";
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(op, num_buckets, seed);
  check_form(op, given);
  check_heights(op, given, num_buckets);
  const Four tables = contiguous_tables(given);
  const ScalarType type = compute_type(quotient_b.scalar_type());
  Call call = read_bags(op, ids, offsets, "sum", std::nullopt, include_last, type);
  set_rule(call, num_buckets, remainder_b.size(0), seed, prehashed);
  const Tables t = view(tables);
  const Tensor g = read_grad(op, grad, call, t.dim, type);
  Tensor out = empty_like_type(call.ids, type);
  torch::stable::zero_(out);
  const void* pg = g.const_data_ptr();
  void* po = out.mutable_data_ptr();
  torch::stable::parallel_for(
      0, call.bags.bags, call.grain(t.dim * element_bytes(quotient_b.scalar_type())),
      [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(dot_hashed, t, call.source, call.bags, from, to, pg, po);
      });
  return out;
}

Tensor quantized_backward_weights(const Tensor& grad, const Tensor& ids,
                                  const OptionalTensor& offsets, const Tensor& quotient_b,
                                  const Tensor& remainder_b, const Tensor& quotient_c,
                                  const Tensor& remainder_c, int64_t num_buckets, int64_t dim,
                                  int64_t bits, int64_t seed, bool include_last, bool prehashed) {
  const char* op = "quantized_hashed_embedding_bag_backward";
  const Four given = {quotient_b, remainder_b, quotient_c, remainder_c};
  check_rule(op, num_buckets, seed);
  check_packed(op, given, num_buckets, dim, bits);
  const Four tables = contiguous_tables(given);
  Call call = read_bags(op, ids, offsets, "sum", std::nullopt, include_last, ScalarType::Float);
  set_rule(call, num_buckets, remainder_b.size(0), seed, prehashed);
  const PackedTables t = view_packed(tables, dim, bits);
  const Tensor g = read_grad(op, grad, call, dim, ScalarType::Float);
  Tensor out = empty_like_type(call.ids, ScalarType::Float);
  torch::stable::zero_(out);
  const void* pg = g.const_data_ptr();
  void* po = out.mutable_data_ptr();
  torch::stable::parallel_for(
      0, call.bags.bags, call.grain(tables[0].size(1)), [&](int64_t from, int64_t to) {
        LIRANK_DISPATCH(dot_quantized, t, call.source, call.bags, from, to, pg, po);
      });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor remainder_b, "
      "Tensor quotient_c, Tensor remainder_c, int num_buckets, int seed=0, str mode=\"sum\", "
      "Tensor? per_sample_weights=None, bool include_last_offset=False, bool prehashed=False, bool "
      "sparse=False) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag(Tensor ids, Tensor? offsets, Tensor quotient_b, Tensor "
      "remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int dim, int bits=8, "
      "int seed=0, str mode=\"sum\", Tensor? per_sample_weights=None, bool "
      "include_last_offset=False, bool prehashed=False, ScalarType output_dtype=float) -> Tensor");
  m.def(
      "hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hashed_embedding_bag_backward_sparse(Tensor grad, Tensor ids, Tensor? offsets, Tensor? "
      "per_sample_weights, int num_buckets, int num_remainders, int seed, str mode, bool "
      "include_last_offset, bool prehashed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hashed_embedding_bag_backward_weights(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "seed, bool include_last_offset, bool prehashed) -> Tensor");
  m.def(
      "quantized_hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, Tensor "
      "quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c, int num_buckets, int "
      "dim, int bits, int seed, bool include_last_offset, bool prehashed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("hashed_embedding_bag", TORCH_BOX(&hashed_embedding_bag));
  m.impl("quantized_hashed_embedding_bag", TORCH_BOX(&quantized_hashed_embedding_bag));
  m.impl("hashed_embedding_bag_backward", TORCH_BOX(&backward_dense));
  m.impl("hashed_embedding_bag_backward_sparse", TORCH_BOX(&backward_sparse));
  m.impl("hashed_embedding_bag_backward_weights", TORCH_BOX(&backward_weights));
  m.impl("quantized_hashed_embedding_bag_backward", TORCH_BOX(&quantized_backward_weights));
}

}  // namespace lirank
