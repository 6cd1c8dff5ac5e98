// residual_cross_score: checks, CPU kernels, schema. The derivation is in simd/cross_score.h.
// Sources: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
#include "cross_score_folded.h"

#include <array>

namespace lirank {
namespace {

void check_score(const ScoreArguments& a) {
  check_floating(kOp, "request", a.request);
  const ScalarType type = a.request.scalar_type();
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor*>{"request", &a.request}, {"items", &a.items}}) {
    check_same_dtype(kOp, name, *t, type);
    check_dim(kOp, name, *t, 2);
    LIRANK_CHECK(t->size(1) > 0, kOp, name, "wanted a width of at least 1, got ", shape(*t));
  }
  check_same_dtype(kOp, "counts", a.counts, ScalarType::Long);
  check_dim(kOp, "counts", a.counts, 1);
  LIRANK_CHECK(a.counts.size(0) == a.request.size(0), kOp, "counts", "wanted shape (",
               a.request.size(0), ",), got ", shape(a.counts));
  const bool none = a.low_rank.empty() && a.attention.empty();
  LIRANK_CHECK(!none && a.low_rank.size() % 3 == 0, kOp, "low_rank",
               "wanted at least one layer of 3 tensors, got ", a.low_rank.size());
  LIRANK_CHECK(a.attention.size() % 5 == 0, kOp, "attention",
               "wanted at least one layer of 5 tensors, got ", a.attention.size());
  LIRANK_CHECK(a.merge >= 0 && a.merge <= 2, kOp, "merge", "wanted 0, 1 or 2, got ", a.merge);
  LIRANK_CHECK(a.log_temperatures.empty() || a.log_temperatures.size() == a.attention.size() / 5,
               kOp, "log_temperatures", "wanted none, or one per layer, got ",
               a.log_temperatures.size());
  for (const Tensor& t : a.log_temperatures) {
    check_same_dtype(kOp, "log_temperatures", t, type);
    check_dim(kOp, "log_temperatures", t, 0);
  }
  LIRANK_CHECK(a.weight || !a.bias, kOp, "bias", "wanted None without a weight, got a tensor");
  if (!a.weight) return;
  check_dim(kOp, "weight", *a.weight, 2);
  check_matrix(kOp, "weight", *a.weight, a.weight->size(0), a.out_dim(), type);
  if (!a.bias) return;
  check_same_dtype(kOp, "bias", *a.bias, type);
  LIRANK_CHECK(a.bias->dim() == 1 && a.bias->size(0) == a.weight->size(0), kOp, "bias",
               "wanted shape (", a.weight->size(0), ",), got ", shape(*a.bias));
}

std::vector<int64_t> read_counts(const Tensor& counts, int64_t items) {
  const Tensor whole = to_contiguous(counts);
  const int64_t* from = whole.const_data_ptr<int64_t>();
  std::vector<int64_t> found(from, from + whole.size(0));
  int64_t sum = 0;
  for (const int64_t n : found) {
    LIRANK_CHECK(n >= 0, kOp, "counts", "wanted no negative number, got ", n);
    LIRANK_CHECK(n <= items, kOp, "counts", "wanted numbers that add up to the ", items,
                 " rows of items, got ", n);
    sum += n;
    LIRANK_CHECK(sum <= items, kOp, "counts", "wanted numbers that add up to the ", items,
                 " rows of items, got a larger sum");
  }
  LIRANK_CHECK(sum == items, kOp, "counts", "wanted numbers that add up to the ", items,
               " rows of items, got a sum of ", sum);
  return found;
}

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The net on joined rows, and the weight.
Tensor score_joined(const ScoreArguments& a, const Tensor& x) {
  Tensor y = x;
  if (a.both()) {
    y = residual_cross_net(x, a.low_rank, a.attention, a.temperature, a.log_temperatures,
                           a.token_dim, a.skip, a.merge);
  } else {
    for (size_t i = 0; i < a.low_rank.size(); i += 3)
      y = low_rank_cross(x, y, a.low_rank[i], a.low_rank[i + 1], a.low_rank[i + 2]);
    for (size_t i = 0; i < a.attention.size(); i += 5) {
      const Tensor* layer = &a.attention[i];
      double scale = a.temperature;
      if (!a.log_temperatures.empty()) {
        const Tensor t = as_float_type(a.log_temperatures[i / 5], ScalarType::Double);
        scale = std::exp(t.const_data_ptr<double>()[0]);
      }
      y = attention_cross(x, y, layer[0], layer[1], layer[2], layer[3], layer[4], scale,
                          a.token_dim, a.skip);
    }
  }
  return a.weight ? linear(y, *a.weight, a.bias) : y;
}

// A piece of folding: rows [begin, end) of a matrix, or with layer -1 the weight's, or with
// stack -1 the shifts.
struct Fold {
  size_t request;
  int stack;
  int64_t layer, begin, end;
};

template <typename T>
std::vector<Fold> folds_of(const ScoreNet<T>& net, const std::vector<Plan>& plans) {
  std::vector<Fold> found;
  for (size_t q = 0; q < plans.size(); ++q) {
    if (plans[q].joined) continue;
    found.push_back({q, -1, 0, 0, 0});
    for (int stack = 0; stack < 2; ++stack) {
      const auto add = [&](int64_t layer, int64_t rows) {
        for (int64_t i = 0; i < rows; i += kFoldRows)
          found.push_back({q, stack, layer, i, i + kFoldRows < rows ? i + kFoldRows : rows});
      };
      for (int64_t l = 1; l < net.counts[stack] && plans[q].inner[stack]; ++l)
        add(l, net.layers[stack][l].projections * net.layers[stack][l].r);
      if (plans[q].outer && net.counts[stack]) add(-1, net.m);
    }
  }
  return found;
}

template <typename T>
void fold_all(const ScoreNet<T>& net, const std::vector<Plan>& plans, FoldedRequests<T>& folded) {
  const std::vector<Fold> work = folds_of(net, plans);
  const int64_t count = (int64_t)work.size(), all = torch::stable::get_num_threads();
  const int64_t tasks = count < all ? count : all;
  const Scratch<T> scratch(tasks, LIRANK_DISPATCH(CrossScore<T>::fold_scratch, net));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task)
      for (int64_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
        const Fold& one = work[(size_t)i];
        const Folded<T>& f = folded.all[one.request];
        T* own = scratch.of(task);
        if (one.stack < 0)
          LIRANK_DISPATCH(CrossScore<T>::shifts, net, f, own);
        else if (one.layer < 0)
          LIRANK_DISPATCH(CrossScore<T>::outer, net, f, one.stack, one.begin, one.end, own);
        else
          LIRANK_DISPATCH(CrossScore<T>::inner, net, f, one.stack, one.layer, one.begin, one.end,
                          own);
      }
  });
}

// Candidates of one request that one tile takes.
struct ScoreRows {
  size_t request;
  int64_t begin, rows;
  int vectors;  // 0: few candidates
};

// Few candidates of a request, in pieces of at most `most`.
void add_few(size_t request, int64_t begin, int64_t rows, int64_t most,
             std::vector<ScoreRows>& found) {
  const int64_t pieces = most < 1 ? 1 : (rows + most - 1) / most;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = rows * i / pieces, stop = rows * (i + 1) / pieces;
    found.push_back({request, begin + first, stop - first, 0});
  }
}

// Tiles of nearly equal size for every request, smaller where threads would be idle. `cost` is that
// of a candidate in multiply-adds.
std::vector<ScoreRows> tiles_of_requests(const std::vector<int64_t>& counts,
                                         const std::vector<Plan>& plans, int64_t lanes,
                                         int64_t most, double cost) {
  int64_t total = 0;
  for (size_t q = 0; q < counts.size(); ++q) total += plans[q].joined ? 0 : counts[q];
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = (total + threads * lanes - 1) / (threads * lanes);
  const int64_t widest = share < 1 ? 1 : share < most ? share : most;
  // A few candidates of one request are worth all threads whose share is worth waking one.
  const int64_t useful = 1 + (int64_t)(cost * (double)total / (double)kWork);
  const int64_t tasks = useful < threads ? useful : threads;
  const int64_t piece = (total + tasks - 1) / tasks;
  std::vector<ScoreRows> found;
  int64_t begin = 0;
  for (size_t q = 0; q < counts.size(); ++q) {
    if (counts[q] <= kFew) {
      if (!plans[q].joined && counts[q] > 0) add_few(q, begin, counts[q], piece, found);
      begin += counts[q];
      continue;
    }
    const int64_t vectors = (counts[q] + lanes - 1) / lanes;
    const int64_t pieces = (vectors + widest - 1) / widest;
    int64_t done = 0;
    for (int64_t i = 0; i < pieces && !plans[q].joined; ++i) {
      const int64_t stop = vectors * (i + 1) / pieces, wide = stop - vectors * i / pieces;
      const int64_t end = stop * lanes < counts[q] ? stop * lanes : counts[q];
      found.push_back({q, begin + done, end - done, (int)wide});
      done = end;
    }
    begin += counts[q];
  }
  return found;
}

template <typename T>
void score_tiles(const ScoreNet<T>& net, const FoldedRequests<T>& folded,
                 const std::vector<ScoreRows>& tiles, const T* items, int64_t wide, T* y) {
  const int64_t count = (int64_t)tiles.size(), all = torch::stable::get_num_threads();
  const int64_t tasks = count < all ? count : all, lanes = LIRANK_DISPATCH(CrossScore<T>::lanes);
  int64_t most = 1;
  for (const ScoreRows& tile : tiles) {
    const int64_t size = tile.vectors ? tile.vectors * lanes : tile.rows;
    most = size > most ? size : most;
  }
  const Scratch<T> scratch(tasks, LIRANK_DISPATCH(CrossScore<T>::scratch, net, most));
  const int64_t d_c = net.d - net.d_u;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task)
      for (int64_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
        const ScoreRows& one = tiles[(size_t)i];
        if (one.vectors == 0) {
          LIRANK_DISPATCH(CrossScore<T>::few, net, folded.all[one.request], items + one.begin * d_c,
                          one.rows, y + one.begin * wide, scratch.of(task));
          continue;
        }
        LIRANK_DISPATCH(CrossScore<T>::tile, net, folded.all[one.request], items + one.begin * d_c,
                        one.rows, one.vectors, y + one.begin * wide, scratch.of(task));
      }
  });
}

// The rows [request; item] of the requests that are joined, and back: copies of whole rows.
Tensor join_rows(const ScoreArguments& a, const std::vector<int64_t>& counts,
                 const std::vector<Plan>& plans, int64_t rows) {
  const Tensor request = to_contiguous(a.request), items = to_contiguous(a.items);
  const int64_t size = (int64_t)request.element_size();
  const int64_t left = request.size(1) * size, right = items.size(1) * size;
  Tensor out = new_tensor({rows, a.width()}, request.scalar_type());
  char* to = (char*)out.mutable_data_ptr();
  const char *u = (const char*)request.const_data_ptr(), *c = (const char*)items.const_data_ptr();
  for (size_t q = 0; q < counts.size(); ++q)
    for (int64_t i = 0; i < counts[q]; ++i, c += right) {
      if (!plans[q].joined) continue;
      memcpy(to, u + (int64_t)q * left, (size_t)left);
      memcpy(to + left, c, (size_t)right);
      to += left + right;
    }
  return out;
}

template <typename T>
Tensor score(const ScoreArguments& a, const std::vector<int64_t>& counts) {
  const int64_t wide = a.weight ? a.weight->size(0) : a.out_dim();
  // An empty weight has no memory, and would be taken for none.
  if (wide == 0) return new_tensor({a.items.size(0), 0}, a.request.scalar_type());
  const ScoreShape shape = shape_of<T>(a);
  std::vector<Plan> plans;
  int64_t joined = 0;
  for (const int64_t n : counts) {
    plans.push_back(plan_of(shape, n));
    joined += plans.back().joined ? n : 0;
  }
  const int64_t rows = a.items.size(0);
  if (joined == rows) return score_joined(a, join_rows(a, counts, plans, rows));
  const PreparedScore<T> p(a);
  const ScalarType type = compute_type(a.request.scalar_type());
  const Tensor request = as_float_type(a.request, type), items = as_float_type(a.items, type);
  Tensor out = new_tensor({rows, wide}, type);
  T* y = out.mutable_data_ptr<T>();
  FoldedRequests<T> folded(p.net, plans, request.const_data_ptr<T>());
  fold_all(p.net, plans, folded);
  const auto tiles =
      tiles_of_requests(counts, plans, LIRANK_DISPATCH(CrossScore<T>::lanes),
                        LIRANK_DISPATCH(CrossScore<T>::most_vectors), joined_cost(shape));
  score_tiles(p.net, folded, tiles, items.const_data_ptr<T>(), wide, y);
  if (joined > 0) {
    const Tensor plain = score_joined(a, join_rows(a, counts, plans, joined));
    const Tensor found = as_float_type(plain, type);
    const T* from = found.const_data_ptr<T>();
    for (size_t q = 0; q < counts.size(); ++q, y += counts[q - 1] * wide) {
      if (!plans[q].joined) continue;
      memcpy(y, from, (size_t)(counts[q] * wide) * sizeof(T));
      from += counts[q] * wide;
    }
  }
  return as_float_type(out, a.request.scalar_type());
}

}  // namespace

Tensor residual_cross_score(const Tensor& request, const Tensor& items, const Tensor& counts,
                            const Tensors low_rank, const Tensors attention, double temperature,
                            const Tensors log_temperatures, int64_t token_dim, bool skip,
                            int64_t merge, const OptionalTensor& weight,
                            const OptionalTensor& bias) {
  const ScoreArguments a = {request,          items,     counts, low_rank, attention, temperature,
                            log_temperatures, token_dim, skip,   merge,    weight,    bias};
  check_score(a);
  const std::vector<int64_t> numbers = read_counts(counts, items.size(0));
  // Where the net would take so many rows in products of bfloat16, it takes them whole.
  if (takes_bf16_products(items)) {
    Plan joined;
    joined.joined = true;
    const std::vector<Plan> plans(numbers.size(), joined);
    return score_joined(a, join_rows(a, numbers, plans, items.size(0)));
  }
  return request.scalar_type() == ScalarType::Double ? score<double>(a, numbers)
                                                     : score<float>(a, numbers);
}

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "residual_cross_score(Tensor request, Tensor items, Tensor counts, Tensor[] low_rank, "
      "Tensor[] attention, float temperature, Tensor[] log_temperatures, int token_dim=1, "
      "bool skip=True, int merge=0, Tensor? weight=None, Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("residual_cross_score", TORCH_BOX(&residual_cross_score));
}

}  // namespace lirank
