// low_rank_cross and attention_cross: checks, CPU kernels, schema.
// Sources: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
#include "checks.h"

#include "cross_host.h"

#define LIRANK_KERNELS "cross_kernels.h"
#include "foreach_isa.h"

namespace lirank {
namespace {

// Multiply-adds per task below which a thread is not woken: about 10 microseconds.
constexpr int64_t kWork = 1 << 19;
// Batches up to this size take cross_small.h; it depends on nothing else, so that a result
// does not depend on the number of threads.
constexpr int64_t kSmallBatch = 24;

// How a batch is cut into tiles. A sample's result does not depend on it.
struct Tiles {
  int64_t samples, count, tasks;
  int vectors;
};

template <typename T>
Tiles tiles_of(int64_t batch, int64_t work_per_sample) {
  const int64_t lanes = LIRANK_DISPATCH(lanes, (const T*)nullptr);
  const int64_t most = LIRANK_DISPATCH(tile_vectors);
  const int64_t useful = 1 + batch * work_per_sample / kWork;
  const int64_t all = torch::stable::get_num_threads(), threads = useful < all ? useful : all;
  const int64_t share = (batch + threads * lanes - 1) / (threads * lanes);
  const int vectors = (int)(share < 1 ? 1 : share < most ? share : most);
  const int64_t samples = vectors * lanes, count = (batch + samples - 1) / samples;
  return {samples, count, count < threads ? count : threads, vectors};
}

// Calls run(begin, end, scratch) for every tile, tasks taking consecutive tiles.
template <typename T, typename Run>
void over_tiles(const Tiles& tiles, int64_t batch, int64_t scratch_size, const Run& run) {
  const Scratch<T> scratch(tiles.tasks, scratch_size);
  torch::stable::parallel_for(0, tiles.tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t stop = tiles.count * (task + 1) / tiles.tasks;
      for (int64_t i = tiles.count * task / tiles.tasks; i < stop; ++i) {
        const int64_t begin = i * tiles.samples, end = begin + tiles.samples;
        run(begin, end < batch ? end : batch, scratch.of(task));
      }
    }
  });
}

template <typename T>
int64_t work_of(const Layer<T>& layer) {
  const int64_t scores = layer.projections == 3 ? layer.r * layer.r / layer.token_dim : 0;
  return (layer.projections + 1) * layer.d * layer.r + 12 * scores;
}

template <typename T>
int64_t scratch_of(const Layer<T>& layer, int64_t lanes) {
  return LIRANK_DISPATCH(tile_scratch, layer.d, layer.r, layer.token_dim, layer.projections, lanes);
}

// Tasks of consecutive samples for a small batch.
Tiles small_tiles(int64_t batch, int64_t work_per_sample) {
  const int64_t all = torch::stable::get_num_threads();
  int64_t tasks = 1 + batch * work_per_sample / kWork;
  tasks = tasks < all ? tasks : all;
  const int64_t samples = batch > tasks ? (batch + tasks - 1) / tasks : 1;
  const int64_t count = (batch + samples - 1) / samples;
  return {samples, count, count, 0};
}

// The result; where `keep` is set also the projections, (B, projections * r), and with attention
// what goes into u, (B, r).
template <typename T>
std::vector<Tensor> forward(const Arguments& a, bool keep) {
  const Prepared<T> p(a);
  const Layer<T>& layer = p.layer;
  const int64_t batch = a.x0.size(0);
  std::vector<Tensor> out = {empty_like_type(a.x0, p.type)};
  T* y = out[0].template mutable_data_ptr<T>();
  Kept<T> kept = {nullptr, nullptr};
  if (keep) {
    out.push_back(torch::stable::empty({batch, layer.projections * layer.r}, p.type));
    kept.hidden = out[1].template mutable_data_ptr<T>();
  }
  if (keep && layer.projections == 3) {
    out.push_back(torch::stable::empty({batch, layer.r}, p.type));
    kept.mixed = out[2].template mutable_data_ptr<T>();
  }
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, work_of(layer));
    const int64_t size =
        LIRANK_DISPATCH(small_scratch, layer.d, layer.r, layer.token_dim, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_small, layer, p.x0, p.x, begin, end, y, kept, scratch);
    });
  } else {
    const Tiles tiles = tiles_of<T>(batch, work_of(layer));
    const int64_t size = scratch_of(layer, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_forward, layer, p.x0, p.x, begin, end, tiles.vectors, y, kept, scratch);
    });
  }
  for (Tensor& t : out) t = as_type(t, a.x0.scalar_type());
  return out;
}

std::vector<Tensor> forward(const char* op, const Arguments& a, bool keep) {
  check_arguments(op, a);
  return a.x0.scalar_type() == ScalarType::Double ? forward<double>(a, keep)
                                                  : forward<float>(a, keep);
}

// The weights of a layer transposed: in (d, r), u (r, d), rows padded to whole vectors.
template <typename T>
class Turned {
 public:
  explicit Turned(const Layer<T>& layer)
      : in_size_(layer.d * LIRANK_DISPATCH(turned_width, layer.r, (const T*)nullptr)),
        projections_(layer.projections),
        memory_(1, projections_ * in_size_ +
                       layer.r * LIRANK_DISPATCH(turned_width, layer.d, (const T*)nullptr)) {
    torch::stable::parallel_for(0, projections_ + 1, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        T* to = memory_.of(0) + i * in_size_;
        if (i < projections_)
          LIRANK_DISPATCH(turn_weights, layer.in[i], layer.r, layer.d, to);
        else
          LIRANK_DISPATCH(turn_weights, layer.u, layer.d, layer.r, to);
      }
    });
  }
  const T* in(int i) const { return memory_.of(0) + i * in_size_; }
  const T* u() const { return in(projections_); }

 private:
  int64_t in_size_;
  int projections_;
  Scratch<T> memory_;
};

// Blocks of at most sum_columns columns, evenly on the threads, in whole panels.
Tiles column_tiles(int64_t d, int64_t panel, int64_t threads) {
  threads = threads > 1 ? threads : 1;
  const int64_t panels = (d + panel - 1) / panel, most = LIRANK_DISPATCH(sum_columns) / panel;
  const int64_t share = (panels + threads - 1) / threads, each = share < most ? share : most;
  const int64_t count = (panels + each - 1) / each;
  return {each * panel, count, threads < count ? threads : count, 0};
}

// Gradients of x0, x, the kernels, u and bias, in that order.
template <typename T>
std::vector<Tensor> backward(const Tensor& grad, const Arguments& a, const OptionalTensor& hidden,
                             const OptionalTensor& mixed) {
  const Prepared<T> p(a);
  OptionalTensor kept_hidden, kept_mixed;
  if (hidden) kept_hidden = as_type(*hidden, p.type);
  if (hidden && mixed) kept_mixed = as_type(*mixed, p.type);
  const Tensor g = as_type(grad, p.type);
  const int64_t batch = a.x0.size(0), d = p.layer.d, r = p.layer.r, n = p.layer.projections;
  std::vector<Tensor> out = {empty_like_type(a.x0, p.type), empty_like_type(a.x, p.type)};
  for (int i = 0; i < n; ++i) out.push_back(empty_like_type(*a.kernels[i].second, p.type));
  out.push_back(empty_like_type(a.u, p.type));
  out.push_back(torch::stable::empty({d}, p.type));
  Tensor kept = torch::stable::empty({batch, (n + 1) * r}, p.type);
  T* own = kept.mutable_data_ptr<T>();
  Backward<T> io = {g.const_data_ptr<T>(),
                    p.x0,
                    p.x,
                    hidden ? kept_hidden->template const_data_ptr<T>() : nullptr,
                    kept_mixed ? kept_mixed->template const_data_ptr<T>() : nullptr,
                    out[0].mutable_data_ptr<T>(),
                    out[1].mutable_data_ptr<T>(),
                    own,
                    own + batch * r,
                    {},
                    nullptr};
  const Turned<T> turned(p.layer);
  for (int i = 0; i < n; ++i) io.turned[i] = turned.in(i);
  io.turned_u = turned.u();
  const Tiles tiles = tiles_of<T>(batch, 3 * work_of(p.layer));
  over_tiles<T>(tiles, batch, scratch_of(p.layer, tiles.samples),
                [&](int64_t begin, int64_t end, T* scratch) {
                  LIRANK_DISPATCH(cross_backward, p.layer, io, begin, end, tiles.vectors, scratch);
                });
  WeightGradient<T> to{};
  for (int i = 0; i < n; ++i) to.in[i] = out[2 + i].mutable_data_ptr<T>();
  to.u = out[2 + n].mutable_data_ptr<T>();
  to.bias = out[3 + n].mutable_data_ptr<T>();
  const int64_t panel = LIRANK_DISPATCH(tile_vectors) * LIRANK_DISPATCH(lanes, (const T*)nullptr);
  const Tiles columns = column_tiles(d, panel, tiles.tasks);
  over_tiles<T>(columns, d, LIRANK_DISPATCH(sum_scratch, r, (int)n, panel),
                [&](int64_t begin, int64_t end, T* scratch) {
                  LIRANK_DISPATCH(cross_weights, p.layer, io, batch, begin, end - begin, to,
                                  scratch);
                });
  for (Tensor& t : out) t = as_type(t, a.x0.scalar_type());
  return out;
}

std::vector<Tensor> backward(const char* op, const Tensor& grad, const Arguments& a,
                             const OptionalTensor& hidden, const OptionalTensor& mixed) {
  check_arguments(op, a);
  if (hidden)
    check_matrix(op, "hidden", *hidden, a.x0.size(0), (int64_t)a.kernels.size() * a.u.size(1),
                 a.x0.scalar_type());
  if (mixed) check_matrix(op, "mixed", *mixed, a.x0.size(0), a.u.size(1), a.x0.scalar_type());
  check_same_dtype(op, "grad", grad, a.x0.scalar_type());
  check_same_shape(op, "grad", grad, a.x0);
  return a.x0.scalar_type() == ScalarType::Double ? backward<double>(grad, a, hidden, mixed)
                                                  : backward<float>(grad, a, hidden, mixed);
}

// The layers of residual_cross_net, all checked against x.
template <typename T>
struct PreparedNet {
  std::vector<Prepared<T>> stacks[2];
  std::vector<Layer<T>> layers[2];
  Net<T> net{};
  int64_t work = 0, rank = 0;

  void add(int stack, const Arguments& a) {
    stacks[stack].emplace_back(a);
    const Layer<T>& layer = stacks[stack].back().layer;
    layers[stack].push_back(layer);
    work += work_of(layer);
    rank = layer.r > rank ? layer.r : rank;
  }
  void finish(int64_t d, int64_t merge) {
    net = {layers[0].data(),
           layers[1].data(),
           (int64_t)layers[0].size(),
           (int64_t)layers[1].size(),
           d,
           merge};
  }
};

using Tensors = std::vector<Tensor>;

template <typename T>
Tensor net_forward(const Tensor& x, const Tensors& low_rank, const Tensors& attention,
                   double temperature, const Tensors& log_temperatures, int64_t token_dim,
                   bool skip, int64_t merge) {
  const char* op = "residual_cross_net";
  const OptionalTensor none;
  PreparedNet<T> p;
  for (size_t i = 0; i < low_rank.size(); i += 3) {
    const OptionalTensor bias = low_rank[i + 2];
    const Arguments a = {x, x, {{"v", &low_rank[i]}}, low_rank[i + 1], bias};
    check_arguments(op, a);
    p.add(0, a);
  }
  for (size_t i = 0; i < attention.size(); i += 5) {
    const OptionalTensor bias = attention[i + 4];
    double scale = temperature;
    if (!log_temperatures.empty()) {
      const Tensor t = as_type(log_temperatures[i / 5], compute_type(x.scalar_type()));
      scale = std::exp((double)t.const_data_ptr<T>()[0]);
    }
    const Arguments a = {x,
                         x,
                         {{"q", &attention[i]}, {"k", &attention[i + 1]}, {"v", &attention[i + 2]}},
                         attention[i + 3],
                         bias,
                         scale,
                         token_dim,
                         skip};
    check_arguments(op, a);
    p.add(1, a);
  }
  const int64_t batch = x.size(0), d = x.size(1);
  p.finish(d, merge);
  const Prepared<T>& first = p.stacks[0].front();
  Tensor out = torch::stable::empty({batch, merge == 2 ? 2 * d : d}, first.type);
  T* y = out.mutable_data_ptr<T>();
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, p.work);
    const int64_t size =
        2 * tiles.samples * d + LIRANK_DISPATCH(small_scratch, d, p.rank, token_dim, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_small_net, p.net, first.x0, begin, end, y, scratch);
    });
  } else {
    const Tiles tiles = tiles_of<T>(batch, p.work);
    const int64_t size = LIRANK_DISPATCH(tile_scratch, d, p.rank, token_dim, 3, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_net, p.net, first.x0, begin, end, tiles.vectors, y, scratch);
    });
  }
  return as_type(out, x.scalar_type());
}

Tensor residual_cross_net(const Tensor& x, const Tensors low_rank, const Tensors attention,
                          double temperature, const Tensors log_temperatures, int64_t token_dim,
                          bool skip, int64_t merge) {
  const char* op = "residual_cross_net";
  LIRANK_CHECK(!low_rank.empty() && low_rank.size() % 3 == 0, op, "low_rank",
               "wanted at least one layer of 3 tensors, got ", low_rank.size());
  LIRANK_CHECK(!attention.empty() && attention.size() % 5 == 0, op, "attention",
               "wanted at least one layer of 5 tensors, got ", attention.size());
  LIRANK_CHECK(merge >= 0 && merge <= 2, op, "merge", "wanted 0, 1 or 2, got ", merge);
  LIRANK_CHECK(log_temperatures.empty() || log_temperatures.size() == attention.size() / 5, op,
               "log_temperatures", "wanted none, or one per layer, got ", log_temperatures.size());
  for (const Tensor& t : log_temperatures) {
    check_same_dtype(op, "log_temperatures", t, x.scalar_type());
    check_dim(op, "log_temperatures", t, 0);
  }
  return x.scalar_type() == ScalarType::Double
             ? net_forward<double>(x, low_rank, attention, temperature, log_temperatures, token_dim,
                                   skip, merge)
             : net_forward<float>(x, low_rank, attention, temperature, log_temperatures, token_dim,
                                  skip, merge);
}

Tensor low_rank_cross(const Tensor& x0, const Tensor& x, const Tensor& v, const Tensor& u,
                      const OptionalTensor& bias) {
  return forward("low_rank_cross", {x0, x, {{"v", &v}}, u, bias}, false)[0];
}

std::tuple<Tensor, Tensor> low_rank_cross_train(const Tensor& x0, const Tensor& x, const Tensor& v,
                                                const Tensor& u, const OptionalTensor& bias) {
  const auto found = forward("low_rank_cross", {x0, x, {{"v", &v}}, u, bias}, true);
  return {found[0], found[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> low_rank_cross_backward(
    const Tensor& grad, const Tensor& x0, const Tensor& x, const Tensor& v, const Tensor& u,
    const OptionalTensor& bias, const OptionalTensor& hidden) {
  const auto g =
      backward("low_rank_cross_backward", grad, {x0, x, {{"v", &v}}, u, bias}, hidden, {});
  return {g[0], g[1], g[2], g[3], g[4]};
}

Tensor attention_cross(const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& u, const OptionalTensor& bias,
                       double temperature, int64_t token_dim, bool skip) {
  const Arguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                       token_dim, skip};
  return forward("attention_cross", a, false)[0];
}

std::tuple<Tensor, Tensor, Tensor> attention_cross_train(
    const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& u, const OptionalTensor& bias, double temperature, int64_t token_dim, bool skip) {
  const Arguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                       token_dim, skip};
  const auto found = forward("attention_cross", a, true);
  return {found[0], found[1], found[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_cross_backward(
    const Tensor& grad, const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& u, const OptionalTensor& bias, double temperature,
    int64_t token_dim, bool skip, const OptionalTensor& hidden, const OptionalTensor& mixed) {
  const Arguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                       token_dim, skip};
  const auto g = backward("attention_cross_backward", grad, a, hidden, mixed);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def("low_rank_cross(Tensor x0, Tensor x, Tensor v, Tensor u, Tensor? bias) -> Tensor");
  m.def(
      "low_rank_cross_train(Tensor x0, Tensor x, Tensor v, Tensor u, Tensor? bias) "
      "-> (Tensor, Tensor)");
  m.def(
      "low_rank_cross_backward(Tensor grad, Tensor x0, Tensor x, Tensor v, Tensor u, "
      "Tensor? bias, Tensor? hidden=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "attention_cross(Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, Tensor u, Tensor? bias, "
      "float temperature=1.0, int token_dim=1, bool skip=True) -> Tensor");
  m.def(
      "attention_cross_train(Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, Tensor u, "
      "Tensor? bias, float temperature=1.0, int token_dim=1, bool skip=True) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_cross_backward(Tensor grad, Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, "
      "Tensor u, Tensor? bias, float temperature=1.0, int token_dim=1, bool skip=True, "
      "Tensor? hidden=None, Tensor? mixed=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "residual_cross_net(Tensor x, Tensor[] low_rank, Tensor[] attention, float temperature, "
      "Tensor[] log_temperatures, int token_dim=1, bool skip=True, int merge=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("low_rank_cross", TORCH_BOX(&low_rank_cross));
  m.impl("low_rank_cross_train", TORCH_BOX(&low_rank_cross_train));
  m.impl("low_rank_cross_backward", TORCH_BOX(&low_rank_cross_backward));
  m.impl("attention_cross", TORCH_BOX(&attention_cross));
  m.impl("attention_cross_train", TORCH_BOX(&attention_cross_train));
  m.impl("attention_cross_backward", TORCH_BOX(&attention_cross_backward));
  m.impl("residual_cross_net", TORCH_BOX(&residual_cross_net));
}

}  // namespace lirank
