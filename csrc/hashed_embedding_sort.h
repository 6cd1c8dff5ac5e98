// The ids of a call in the order of their rows in a hashed table, on the CPU, for what sums or
// applies the gradients of runs of one row.
#pragma once
#include "library/cpu_backend.h"
#include "hashed_embedding_backward_ops.h"
#include "simd/tables/hashed_embedding_kernels.h"

#include <algorithm>
#include <vector>

namespace lirank {

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

inline void divide_by_length(const Bags& b, Tensor& grad, int64_t dim) {
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

inline void list_rows(Gradients& g) {
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

inline Gradients read_gradients(const HashedGradientCall& call) {
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

inline bool starts_run(const std::vector<uint64_t>& entries, int64_t i) {
  return i == 0 || entries[i] >> 32 != entries[i - 1] >> 32;
}

template <typename T>
void add_row(T* to, const T* from, int64_t dim) {
  for (int64_t c = 0; c < dim; ++c) to[c] += from[c];
}

inline hashed::GradientRuns runs_of(const Gradients& g, const std::vector<uint64_t>& entries) {
  return {entries.data(), g.bag_of.data(), g.grad.const_data_ptr(), g.call.bags.view.weights, g.dim,
          nullptr,        nullptr};
}

}  // namespace lirank
