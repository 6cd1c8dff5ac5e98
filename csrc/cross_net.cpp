// residual_cross_net: checks, CPU kernels, schema.
// Sources: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
#include "cross_bf16.h"
#include "cross_net.h"
#include "cross_tasks.h"

namespace lirank {
namespace {

// The layers of residual_cross_net, all checked against x.
template <typename T>
struct PreparedNet {
  std::vector<LayerCall<T>> stacks[2];
  std::vector<Layer<T>> layers[2];
  Net<T> net{};
  int64_t work = 0, rank = 0;

  void add(int stack, const LayerArguments& a) {
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

template <typename T>
Tensor net_forward(const Tensor& x, const NetArguments& a, int64_t merge) {
  PreparedNet<T> p;
  for (const LayerArguments& one : a.low_rank_layers) p.add(0, one);
  for (const LayerArguments& one : a.attention_layers) p.add(1, one);
  const int64_t token_dim = a.attention_layers[0].token_dim;
  const int64_t batch = x.size(0), d = x.size(1);
  p.finish(d, merge);
  const LayerCall<T>& first = p.stacks[0].front();
  Tensor out = new_tensor({batch, merge == 2 ? 2 * d : d}, first.type);
  T* y = out.mutable_data_ptr<T>();
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, p.work);
    const int64_t size =
        2 * tiles.samples * d +
        LIRANK_DISPATCH(CrossFewSamples<T>::scratch, d, p.rank, token_dim, 3, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(CrossFewSamples<T>::net, p.net, first.x0, begin, end, y, scratch);
    });
  } else {
    const Tiles tiles = tiles_of<T>(batch, p.work);
    const int64_t size =
        LIRANK_DISPATCH(CrossTiles<T>::scratch, d, p.rank, token_dim, 3, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(CrossTiles<T>::net, p.net, first.x0, begin, end, tiles.vectors, y, scratch);
    });
  }
  return as_float_type(out, x.scalar_type());
}

}  // namespace

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
  LIRANK_CHECK(temperature >= kLeastTemperature, op, "temperature",
               "wanted a number of 1e-30 or more, got ", temperature);
  const NetArguments a(op, x, low_rank, attention, temperature, log_temperatures, token_dim, skip);
  if (takes_bf16_products(x)) return bf16_net(x, a.low_rank_layers, a.attention_layers, merge);
  return x.scalar_type() == ScalarType::Double ? net_forward<double>(x, a, merge)
                                               : net_forward<float>(x, a, merge);
}

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "residual_cross_net(Tensor x, Tensor[] low_rank, Tensor[] attention, float temperature, "
      "Tensor[] log_temperatures, int token_dim=1, bool skip=True, int merge=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("residual_cross_net", TORCH_BOX(&residual_cross_net));
}

}  // namespace lirank
