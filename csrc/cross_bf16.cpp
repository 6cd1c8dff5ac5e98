// Cross layers in bfloat16 on processors that multiply bfloat16: the Torch side.
#include "cross_bf16.h"

#include <stdexcept>

#include "simd/tables/cross_bf16_kernels.h"

namespace lirank {

#if LIRANK_BF16_PRODUCTS

namespace {

// Multiply-adds, in those of float FMAs, below which a thread is not woken: about 10 microseconds.
constexpr int64_t kWork = 1 << 19;
// Samples for each of r up to which the weights are not packed.
constexpr int64_t kDirect = 1;
// Weights that one thread packs in about 10 microseconds.
constexpr int64_t kPacked = 160 << 10;

bool has_tiles() { return bf16_products() == Bf16Products::tiles; }

// Layers on one d, their weights packed together.
class PackedLayers {
 public:
  void add(const LayerArguments& a) {
    const int64_t d = a.x0.size(1), r = a.u.size(1), n = (int64_t)a.kernels.size();
    Bf16Matrix in{{nullptr, nullptr, nullptr}, r, n * r, d, nullptr};
    for (int64_t i = 0; i < n; ++i) in.from[i] = hold(*a.kernels[i].second);
    const Bf16Matrix u{{hold(a.u), nullptr, nullptr}, d, d, r, nullptr};
    Bf16Layer layer{};
    for (int64_t i = 0; i < n; ++i) layer.rows_in[i] = in.from[i];
    layer.rows_u = u.from[0];
    layer.bias = a.bias ? hold(*a.bias) : nullptr;
    layer.attention = shape_of_layer<float>(a);
    layers.push_back(layer);
    matrices_.push_back(in);
    matrices_.push_back(u);
    const int64_t scores = n == 3 ? r * r / a.token_dim : 0;
    work += (n + 1) * d * r / (has_tiles() ? 8 : 1) + 12 * scores;
  }
  // Few samples do without packing, where the weights are whole tiles.
  void prepare(int64_t batch, bool keep) {
    bool direct = !keep;
    for (const Bf16Layer& layer : layers) {
      const int64_t d = layer.attention.d, r = layer.attention.r;
      direct = direct && batch <= kDirect * r && d % 32 == 0 && r % 32 == 0;
    }
    for (Bf16Layer& layer : layers) layer.direct = direct;
    if (!direct) pack();
  }
  std::vector<Bf16Layer> layers;
  int64_t work = 0;  // of a sample, see kWork

 private:
  void pack() {
    int64_t size = 0, panels = 0;
    for (Bf16Matrix& one : matrices_) {
      size += size_of(one);
      panels += panels_of(one);
    }
    memory_.emplace(1, size);
    uint16_t* at = memory_->of(0);
    for (size_t i = 0; i < matrices_.size(); ++i) {
      matrices_[i].panels = at;
      (i % 2 ? layers[i / 2].u : layers[i / 2].in) = at;
      at += size_of(matrices_[i]);
    }
    const int64_t grain = 1 + panels * kPacked / size;
    torch::stable::parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
      int64_t before = 0;
      for (const Bf16Matrix& one : matrices_) {
        const int64_t count = panels_of(one);
        const int64_t from = first > before ? first - before : 0;
        for (int64_t c = from; c < count && before + c < last; ++c) bf16::pack(one, c);
        before += count;
      }
    });
  }
  static int64_t panels_of(const Bf16Matrix& one) { return (one.columns + 15) / 16; }
  static int64_t size_of(const Bf16Matrix& one) {
    return panels_of(one) * ((one.k + 31) / 32) * bf16::kBlock;
  }
  const uint16_t* hold(const Tensor& t) {
    held_.push_back(to_contiguous(t));
    return (const uint16_t*)held_.back().const_data_ptr();
  }
  std::vector<Tensor> held_;
  std::vector<Bf16Matrix> matrices_;
  std::optional<Scratch<uint16_t>> memory_;
};

// Calls run(begin, end, step, scratch) over ranges of samples, in whole tiles of `step`.
template <typename Run>
void over_samples(int64_t batch, int64_t work, int64_t scratch_size, const Run& run) {
  const int64_t all = torch::stable::get_num_threads(), useful = 1 + batch * work / kWork;
  const int64_t threads = useful < all ? useful : all;
  const int64_t step = batch >= threads * bf16::kTileSamples ? bf16::kTileSamples : 16;
  const int64_t tiles = (batch + step - 1) / step, tasks = tiles < threads ? tiles : threads;
  const Scratch<float> scratch(tasks, scratch_size);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = tiles * i / tasks * step, end = tiles * (i + 1) / tasks * step;
      run(begin, end < batch ? end : batch, step, scratch.of(i));
    }
  });
}

const uint16_t* bits(const Tensor& t) { return (const uint16_t*)t.const_data_ptr(); }

}  // namespace

std::vector<Tensor> bf16_layer(const LayerArguments& a, bool keep, int64_t columns) {
  const Tensor x0 = to_contiguous(a.x0), x = to_contiguous(a.x);
  const int64_t batch = x0.size(0), d = x0.size(1), r = a.u.size(1);
  std::vector<Tensor> out = {empty_like_type(x0, ScalarType::BFloat16)};
  uint16_t* y = (uint16_t*)out[0].mutable_data_ptr();
  Bf16SavedActivations kept = {nullptr, nullptr, columns};
  if (keep) {
    out.push_back(new_tensor({batch, columns}, ScalarType::BFloat16));
    if (columns > 0) kept.hidden = (uint16_t*)out[1].mutable_data_ptr();
  }
  if (keep && a.kernels.size() == 3) {
    out.push_back(new_tensor({batch, r}, ScalarType::BFloat16));
    kept.mixed = (uint16_t*)out[2].mutable_data_ptr();
  }
  PackedLayers packed;
  packed.add(a);
  packed.prepare(batch, keep);
  const Bf16Layer& layer = packed.layers[0];
  const int64_t size = bf16::scratch(d, r, a.token_dim, (int64_t)a.kernels.size(), false);
  over_samples(
      batch, packed.work, size, [&](int64_t begin, int64_t end, int64_t step, float* scratch) {
        bf16::layer_task(has_tiles(), layer, bits(x0), bits(x), begin, end, step, y, kept, scratch);
      });
  return out;
}

Tensor bf16_net(const Tensor& input, const std::vector<LayerArguments>& low_rank,
                const std::vector<LayerArguments>& attention, int64_t merge) {
  const Tensor x = to_contiguous(input);
  const int64_t batch = x.size(0), d = x.size(1), token_dim = attention[0].token_dim;
  PackedLayers packed;
  int64_t rank = 0;
  for (const std::vector<LayerArguments>* stack : {&low_rank, &attention})
    for (const LayerArguments& a : *stack) {
      packed.add(a);
      rank = a.u.size(1) > rank ? a.u.size(1) : rank;
    }
  packed.prepare(batch, false);
  const Bf16Layer* first = packed.layers.data();
  const Bf16Net net = {{first, first + low_rank.size()},
                       {(int64_t)low_rank.size(), (int64_t)attention.size()},
                       d,
                       merge};
  Tensor out = new_tensor({batch, merge == 2 ? 2 * d : d}, ScalarType::BFloat16);
  uint16_t* y = (uint16_t*)out.mutable_data_ptr();
  over_samples(batch, packed.work, bf16::scratch(d, rank, token_dim, 3, true),
               [&](int64_t begin, int64_t end, int64_t step, float* scratch) {
                 bf16::net_task(has_tiles(), net, bits(x), begin, end, step, rank, token_dim, y,
                                scratch);
               });
  return out;
}

#else

// Not reached: bf16_products() is none.
std::vector<Tensor> bf16_layer(const LayerArguments&, bool, int64_t) {
  throw std::logic_error("lirank: this build has no products of bfloat16");
}
Tensor bf16_net(const Tensor&, const std::vector<LayerArguments>&,
                const std::vector<LayerArguments>&, int64_t) {
  throw std::logic_error("lirank: this build has no products of bfloat16");
}

#endif

}  // namespace lirank
