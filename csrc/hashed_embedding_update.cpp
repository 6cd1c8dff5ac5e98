// Hashed tables moved by their gradients on the CPU, without making these.
//
// As for the gradients (hashed_embedding_backward.cpp), ids are sorted by row for each table and
// the runs of one row are summed. A run that lies in one task moves its row at once, from registers
// and the cache. The parts of a run that crosses tasks are added in the order of the tasks first,
// so that rows do not depend on the number of threads.
#include "hashed_embedding_update_ops.h"

#include "hashed_embedding_sort.h"

namespace lirank {
namespace {

using hashed::RowUpdate;

// Moves the rows of runs that cross tasks. heads, tails: a row of sums for each task.
void move_crossing(const RowUpdate& u, bool is_double, const std::vector<char>& carried,
                   const char* heads, char* tails, int64_t bytes) {
  const auto row_at = [&](int64_t i) { return (int64_t)(u.runs.entries[i] >> 32); };
  const int64_t tasks = (int64_t)carried.size();
  char* open = nullptr;  // the sum of the run under way
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t from = task * kEntriesPerTask, to = std::min(u.count, from + kEntriesPerTask);
    const bool goes_on = to < u.count && row_at(to - 1) == row_at(to);
    const bool whole = carried[task] && row_at(from) == row_at(to - 1);
    if (carried[task]) {
      const char* part = heads + task * bytes;
      if (is_double)
        add_row((double*)open, (const double*)part, u.runs.dim);
      else
        add_row((float*)open, (const float*)part, u.runs.dim);
      if (!whole || !goes_on) LIRANK_DISPATCH(move_row, u, row_at(from), open);
    }
    if (goes_on && !whole) open = tails + task * bytes;
  }
}

struct Cpu : CpuBackend {
  static constexpr int kBitsOfPosition = 32;

  static void update(const Device&, const HashedUpdateCall& call) {
    const Gradients g = read_gradients(call.gradients);
    const double lr = read_rate(call.lr);
    Sorter sorter;
    for (int t = 0; t < 4; ++t) {
      sorter.sort(g.rows[t].data(), g.ids, call.gradients.heights[t]);
      move(g, sorter,
           {runs_of(g, sorter.entries), g.ids, call.tables[t].mutable_data_ptr(),
            call.has_sums ? call.sums[t].mutable_data_ptr() : nullptr,
            dtype_of(call.tables[t].scalar_type()), lr, call.l2, call.eps});
    }
  }

 private:
  static void move(const Gradients& g, const Sorter& sorter, const RowUpdate& u) {
    const bool is_double = g.type == ScalarType::Double;
    const int64_t tasks = (u.count + kEntriesPerTask - 1) / kEntriesPerTask;
    const int64_t bytes = g.dim * (is_double ? 8 : 4);
    std::vector<char> heads((size_t)(tasks * bytes)), tails((size_t)(tasks * bytes));
    std::vector<char> carried((size_t)tasks);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; ++task)
        carried[task] = LIRANK_DISPATCH(move_runs, u, task * kEntriesPerTask,
                                        std::min(u.count, (task + 1) * kEntriesPerTask),
                                        heads.data() + task * bytes, tails.data() + task * bytes);
    });
    move_crossing(u, is_double, carried, heads.data(), tails.data(), bytes);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_hashed_update(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_hashed_update<Cpu>(m); }

}  // namespace lirank
