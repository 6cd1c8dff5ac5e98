// Gradients of hashed tables on the CPU.
//
// For each table the ids are sorted by row. The radix sort is stable, so positions rise within a
// row. Each run of one row is then summed in registers. Every id hits one of the 1,000 rows of a
// remainder table; such a row costs only reading the gradient of each id's bag, from the cache, and
// no shared writes.
//
// Tried and dropped: a private copy of the remainder tables for each task. Merging the copies moves
// 2 x 1,000 x dim numbers each.
#include "hashed_embedding_sort.h"

namespace lirank {
namespace {

using hashed::GradientRuns;

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

// Sums the runs of sorted entries; parts of runs that cross tasks are added in their order.
void sum_all(const Gradients& g, const std::vector<uint64_t>& entries,
             const std::vector<int64_t>& before, GradientRuns r) {
  const bool is_double = g.type == ScalarType::Double;
  const int64_t n = (int64_t)entries.size(), tasks = (int64_t)before.size() - 1;
  const int64_t bytes = g.dim * (g.type == ScalarType::Double ? 8 : 4);
  std::vector<char> carries((size_t)(tasks * bytes));
  std::vector<char> carried((size_t)tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task)
      carried[task] = LIRANK_DISPATCH(sum_runs, is_double, r, task * kEntriesPerTask,
                                      std::min(n, (task + 1) * kEntriesPerTask), before[task],
                                      carries.data() + task * bytes);
  });
  for (int64_t task = 0; task < tasks; ++task) {
    if (!carried[task]) continue;
    const int64_t row = (int64_t)(entries[task * kEntriesPerTask] >> 32);
    char* to = (char*)r.out + (r.rows ? before[task] - 1 : row) * bytes;
    const char* from = carries.data() + task * bytes;
    if (is_double)
      add_row((double*)to, (const double*)from, g.dim);
    else
      add_row((float*)to, (const float*)from, g.dim);
  }
}

Tensor dense_gradient(const Gradients& g, Sorter& sorter, int table) {
  sorter.sort(g.rows[table].data(), g.ids, g.call.heights[table]);
  Tensor out = new_tensor({g.call.heights[table], g.dim}, g.type);
  torch::stable::zero_(out);
  const int64_t tasks = (g.ids + kEntriesPerTask - 1) / kEntriesPerTask;
  GradientRuns r = runs_of(g, sorter.entries);
  r.out = out.mutable_data_ptr();
  sum_all(g, sorter.entries, std::vector<int64_t>(tasks + 1, 0), r);
  return as_float_type(out, g.call.grad.scalar_type());
}

std::pair<Tensor, Tensor> sparse_gradient(const Gradients& g, Sorter& sorter, int table) {
  sorter.sort(g.rows[table].data(), g.ids, g.call.heights[table]);
  const int64_t tasks = (g.ids + kEntriesPerTask - 1) / kEntriesPerTask;
  const std::vector<int64_t> before = runs_before(sorter.entries, tasks);
  Tensor rows = new_tensor({before.back()}, ScalarType::Long);
  Tensor out = new_tensor({before.back(), g.dim}, g.type);
  GradientRuns r = runs_of(g, sorter.entries);
  r.out = out.mutable_data_ptr();
  r.rows = rows.mutable_data_ptr<int64_t>();
  sum_all(g, sorter.entries, before, r);
  return {rows, as_float_type(out, g.call.grad.scalar_type())};
}

struct Cpu : CpuBackend {
  static constexpr int kBitsOfPosition = 32;

  static std::tuple<Tensor, Tensor, Tensor, Tensor> dense(const Device&,
                                                          const HashedGradientCall& call) {
    const Gradients g = read_gradients(call);
    Sorter sorter;
    Tensor qb = dense_gradient(g, sorter, 0), rb = dense_gradient(g, sorter, 1);
    Tensor qc = dense_gradient(g, sorter, 2), rc = dense_gradient(g, sorter, 3);
    return {qb, rb, qc, rc};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sparse(
      const Device&, const HashedGradientCall& call) {
    const Gradients g = read_gradients(call);
    Sorter sorter;
    auto [rows_b, values_b] = sparse_gradient(g, sorter, 0);
    Tensor remainder_b = dense_gradient(g, sorter, 1);
    auto [rows_c, values_c] = sparse_gradient(g, sorter, 2);
    Tensor remainder_c = dense_gradient(g, sorter, 3);
    return {rows_b, values_b, remainder_b, rows_c, values_c, remainder_c};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_hashed_gradients(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_hashed_gradients<Cpu>(m); }

}  // namespace lirank
