// Gradients of hashed tables on the CPU.
//
// For each table the ids are sorted by row. The radix sort is stable, so positions rise within a
// row. Each run of one row is then summed in registers. Every id hits one of the 1,000 rows of a
// remainder table; such a row costs only reading the gradient of each id's bag, from the cache, and
// no shared writes.
//
// Tried and dropped: a private copy of the remainder tables for each task. Merging the copies moves
// 2 x 1,000 x dim numbers each.
#include "hashed_embedding_backward_ops.h"

#include "cpu_backend.h"
#include "hashed_embedding_kernels.h"

#include <algorithm>
#include <vector>

namespace lirank {
namespace {

using hashed::GradientRuns;

// Sorted entries that one task sums. The number is fixed, so that sums do not depend on the number
// of threads.
constexpr int64_t kEntriesPerTask = 4096;

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
  const HashedGradientCall& call;
  ScalarType type;   // of sums
  Tensor grad;       // of each bag; divided by its length for the mean
  int64_t dim, ids;  // ids: how many are in bags; those after the last bag are not
  std::vector<uint32_t> rows[4], bag_of;
};

void divide_by_length(const Bags& b, Tensor& grad, int64_t dim) {
  const auto divide = [&](auto* g) {
    for (int64_t bag = 0; bag < b.bag_count; ++bag) {
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
  const Bags& bags = g.call.bags.view;
  uint32_t* lists[4];
  for (int t = 0; t < 4; ++t) {
    g.rows[t].resize(g.ids);
    lists[t] = g.rows[t].data();
  }
  g.bag_of.resize(g.ids);
  const int64_t step = 4096;
  torch::stable::parallel_for(0, (g.ids + step - 1) / step, 8, [&](int64_t from, int64_t to) {
    LIRANK_DISPATCH(hash_rows, g.call.rule, (const int64_t*)bags.ids, from * step,
                    std::min(g.ids, to * step), lists);
  });
  torch::stable::parallel_for(0, bags.bag_count, 4096, [&](int64_t from, int64_t to) {
    for (int64_t bag = from; bag < to; ++bag)
      std::fill(g.bag_of.begin() + bags.start(bag), g.bag_of.begin() + bags.start(bag + 1),
                (uint32_t)bag);
  });
}

Gradients read_gradients(const HashedGradientCall& call) {
  const Bags& bags = call.bags.view;
  const ScalarType type = compute_type(call.grad.scalar_type());
  Gradients g{call,
              type,
              as_float_type(call.grad, type),
              call.grad.size(1),
              bags.bag_count > 0 ? bags.start(bags.bag_count) : 0,
              {},
              {}};
  if (bags.mean) {
    g.grad = torch::stable::clone(g.grad);
    divide_by_length(bags, g.grad, g.dim);
  }
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

GradientRuns runs_of(const Gradients& g, const std::vector<uint64_t>& entries) {
  return {entries.data(), g.bag_of.data(), g.grad.const_data_ptr(), g.call.bags.view.weights, g.dim,
          nullptr,        nullptr};
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
