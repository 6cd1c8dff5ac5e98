// Arguments of residual_cross_score, its weights ready for the kernels, and memory for what is
// folded of each request.
#pragma once
#include "cross_net.h"
#include "simd/tables/cross_score_kernels.h"
#include "cross_score_plan.h"
#include "cross_tasks.h"

#include <memory>
#include <vector>

namespace lirank {

constexpr const char* kOp = "residual_cross_score";

struct ScoreArguments {
  const Tensor &request, &items, &counts;
  const Tensors &low_rank, &attention;
  double temperature;
  const Tensors& log_temperatures;
  int64_t token_dim;
  bool skip;
  int64_t merge;
  const OptionalTensor &weight, &bias;

  bool both() const { return !low_rank.empty() && !attention.empty(); }
  int64_t width() const { return request.size(1) + items.size(1); }
  int64_t out_dim() const { return both() && merge == 2 ? 2 * width() : width(); }
};

template <typename T>
ScoreShape shape_of(const ScoreArguments& a) {
  ScoreShape shape;
  shape.lanes = LIRANK_DISPATCH(CrossScore<T>::lanes);
  shape.d = a.width();
  shape.d_u = a.request.size(1);
  shape.concatenated = a.both() && a.merge == 2;
  shape.m = a.weight ? a.weight->size(0) : 0;
  const auto rank = [](const Tensor& u) { return u.dim() == 2 ? u.size(1) : 1; };
  if (!a.low_rank.empty())
    shape.stacks[0] = {(int64_t)a.low_rank.size() / 3, rank(a.low_rank[1]), 1};
  if (!a.attention.empty())
    shape.stacks[1] = {(int64_t)a.attention.size() / 5, rank(a.attention[3]), 3};
  return shape;
}

// The layers of the net, their request halves padded to whole vectors, and the weight.
template <typename T>
struct PreparedScore {
  std::vector<LayerWeights<T>> held;
  std::vector<Layer<T>> layers[2];
  std::vector<const T*> padded;
  std::vector<int64_t> width;
  std::vector<Tensor> kept;
  ScoreNet<T> net{};
  const int64_t lanes;

  explicit PreparedScore(const ScoreArguments& a) : lanes(LIRANK_DISPATCH(CrossScore<T>::lanes)) {
    const ScalarType type = compute_type(a.request.scalar_type());
    const Tensor x = new_tensor({0, a.width()}, a.request.scalar_type());
    const NetArguments all(kOp, x, a.low_rank, a.attention, a.temperature, a.log_temperatures,
                           a.token_dim, a.skip);
    net.d = a.width();
    net.d_u = a.request.size(1);
    net.merge = a.merge;
    for (int stack = 0; stack < 2; ++stack) {
      for (const LayerArguments& one : stack ? all.attention_layers : all.low_rank_layers) {
        held.emplace_back(one);
        layers[stack].push_back(held.back().layer);
      }
      net.layers[stack] = layers[stack].data();
      net.counts[stack] = (int64_t)layers[stack].size();
      net.first[stack] = stack ? net.counts[0] : 0;
    }
    if (a.weight) {
      net.m = a.weight->size(0);
      net.weight = hold(as_float_type(*a.weight, type));
      net.bias = a.bias ? hold(as_float_type(*a.bias, type)) : nullptr;
    }
    for (const auto& stack : layers)
      for (const Layer<T>& layer : stack) pad(layer, type);
    net.padded = padded.data();
    net.width = width.data();
  }

 private:
  const T* hold(const Tensor& t) {
    kept.push_back(t);
    return kept.back().template const_data_ptr<T>();
  }
  void pad(const Layer<T>& layer, ScalarType type) {
    const int64_t n = lanes, wide = (layer.r + n - 1) / n * n;
    width.push_back(wide);
    padded.push_back(layer.u);
    if (wide == layer.r) return;
    kept.push_back(new_tensor({net.d_u, wide}, type));
    T* to = kept.back().template mutable_data_ptr<T>();
    for (int64_t i = 0; i < net.d_u; ++i)
      for (int64_t j = 0; j < wide; ++j)
        to[i * wide + j] = j < layer.r ? layer.u[i * layer.r + j] : T(0);
    padded.back() = to;
  }
};

// What is folded of every request that shares, in one piece of memory.
template <typename T>
class FoldedRequests {
 public:
  FoldedRequests(const ScoreNet<T>& net, const std::vector<Plan>& plans, const T* request)
      : layers_(net.counts[0] + net.counts[1]), each_(layers_ * (layers_ + 2)) {
    int64_t size = 0;
    for (const Plan& plan : plans) size += plan.joined ? 0 : lay(net, plan, nullptr, nullptr);
    memory_.reset(new Scratch<T>(1, size));
    pointers_.resize(plans.size() * each_);
    all.resize(plans.size());
    T* at = memory_->of(0);
    for (size_t q = 0; q < plans.size(); ++q) {
      if (plans[q].joined) continue;
      all[q].u = request + (int64_t)q * net.d_u;
      at += lay(net, plans[q], &all[q], pointers_.data() + q * each_, at);
    }
  }
  std::vector<Folded<T>> all;

 private:
  // Numbers of one request; sets its pointers where given.
  int64_t lay(const ScoreNet<T>& net, const Plan& plan, Folded<T>* f, T** pointers,
              T* at = nullptr) const {
    int64_t size = 0;
    const auto take = [&](int64_t n) {
      T* found = f ? at + size : nullptr;
      size += (n + 15) / 16 * 16;
      return found;
    };
    T **shift = pointers, **inner = pointers + (f ? layers_ : 0),
      **outer = inner + (f ? layers_ * layers_ : 0);
    T* constant = plan.outer ? take(net.m) : nullptr;
    for (int stack = 0; stack < 2; ++stack)
      for (int64_t l = 0; l < net.counts[stack]; ++l) {
        const Layer<T>& layer = net.layers[stack][l];
        const int64_t i = net.first[stack] + l, rows = layer.projections * layer.r;
        T* to = take(rows);
        if (f) shift[i] = to;
        for (int64_t j = 0; j < l && plan.inner[stack]; ++j) {
          to = take(rows * net.width[net.first[stack] + j]);
          if (f) inner[i * layers_ + net.first[stack] + j] = to;
        }
        if (plan.outer) {
          to = take(net.m * net.width[i]);
          if (f) outer[i] = to;
        }
      }
    if (f) {
      for (int stack = 0; stack < 2; ++stack)
        f->inner[stack] = plan.inner[stack] || net.counts[stack] < 2;
      f->outer = plan.outer;
      f->shift = shift;
      f->inner_m = inner;
      f->outer_m = outer;
      f->constant = constant;
    }
    return size;
  }
  int64_t layers_;
  size_t each_;
  std::unique_ptr<Scratch<T>> memory_;
  std::vector<T*> pointers_;
};

}  // namespace lirank
