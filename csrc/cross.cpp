// low_rank_cross and attention_cross: checks, CPU kernels, schema.
// Sources: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
#include "cross_bf16.h"
#include "half.h"

#define LIRANK_KERNELS "simd/cross_tiles.h"
#include "simd/foreach_isa.h"

namespace lirank {
namespace {

// Multiply-adds per task below which a thread is not woken: about 10 microseconds.
constexpr int64_t kWork = 1 << 19;
// Batches up to this size take simd/cross_few_samples.h; it depends on nothing else, so that a
// result does not depend on the number of threads.
constexpr int64_t kSmallBatch = 24;
// From this batch on, and from r on, one layer takes simd/cross_rows.h, which packs the weights: at
// 96 samples 0.174 ms against 0.194 (d = 512, r = 64, one thread; on two, 128 samples lose 9 %
// yet).
constexpr int64_t kManySamples = 96;

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

template <typename T>
int64_t rows_scratch(const Layer<T>& layer, int64_t samples) {
  return LIRANK_DISPATCH(row_scratch, layer.d, layer.r, layer.token_dim, layer.projections,
                         samples);
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

// Columns of the projection that training keeps, so that it keeps at most 55 % of what eager
// does: with L layers on one input d (1 + L) + L columns against d (2 + L) + L r elements a
// sample, for L = 2. Whole lines, where not all.
int64_t kept_columns(int64_t d, int64_t r) {
  const int64_t most = (2 * d + 11 * r) / 20;
  return most < r ? most / 16 * 16 : r;
}

// Samples per tile of the row kernels. The block, its results and what is fetched for the next
// lie in L2 beside 128 KB of weights: 24 samples up to a width of 512 floats, with AVX-512, whose
// processors have 1 or 2 MB of L2, of 1024. Weights beyond that L2 come from L3 once a tile: 48
// samples (2048 samples of d = 1024, r = 256 on a Xeon with AMX: 21.3 ms against 22.9, step 80
// against 86).
template <typename T>
Tiles row_tiles(int64_t batch, const Layer<T>& layer, int64_t work_per_sample) {
  constexpr int64_t kBlockBytes = 64 << 10, kWeightBytes = 1 << 20;
  const int64_t all = torch::stable::get_num_threads();
  const int64_t useful = 1 + batch * work_per_sample / kWork;
  const int64_t threads = useful < all ? useful : all;
  const int64_t size = sizeof(T), more = isa() == Isa::avx512 ? 2 : 1;
  const bool narrow = 24 * layer.d * size <= more * kBlockBytes;
  const bool heavy = more > 1 && (layer.projections + 1) * layer.d * layer.r * size > kWeightBytes;
  int64_t samples = narrow && batch >= threads * 24 * 16 ? 24 : 12;
  if (heavy && batch >= threads * 48 * 4) samples = 48;
  const int64_t count = (batch + samples - 1) / samples;
  return {samples, count, count < threads ? count : threads, 0};
}

// A layer's weights in the panels of simd/cross_rows.h.
template <typename T>
class PackedWeights {
 public:
  // forward: what the forward needs of projections and u; backward: the same as they lie.
  PackedWeights(const Layer<T>& layer, bool projections, bool backward)
      : memory_(1, plan(layer, projections, backward)) {
    T* to = memory_.of(0);
    weights.in = to;
    weights.u = to + at_u_;
    weights.u_straight = to + at_u_straight_;
    weights.in_straight = to + at_in_straight_;
    std::vector<Packing<T>> all;
    const int64_t d = layer.d, r = layer.r, n = layer.projections;
    for (int64_t s = 0; projections && s < n; ++s)
      all.push_back({layer.in[s], d, r, d, 0, true, to + s * weights.in_size});
    all.push_back({layer.u, r, d, r, 0, true, to + at_u_});
    if (backward) {
      all.push_back({layer.u, d, r, d, 0, false, to + at_u_straight_});
      for (int64_t s = 0; s < n; ++s)
        all.push_back({layer.in[s], r, d, n * r, s * r, false, to + at_in_straight_});
    }
    const int64_t count = (int64_t)all.size() * kParts, grain = 1 + kParts * kTurned / (d * r);
    torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        LIRANK_DISPATCH(pack, all[i / kParts], i % kParts, kParts);
    });
  }
  Packed<T> weights{};

 private:
  static constexpr int64_t kParts = 8;         // of one matrix: shared out evenly on threads
  static constexpr int64_t kTurned = 1 << 16;  // weights a thread packs in about 10 microseconds

  int64_t plan(const Layer<T>& layer, bool projections, bool backward) {
    const T* none = nullptr;
    const int64_t d = layer.d, r = layer.r, n = layer.projections;
    weights.in_size = LIRANK_DISPATCH(packed_size, r, d, none);
    at_u_ = projections ? n * weights.in_size : 0;
    at_u_straight_ = at_u_ + LIRANK_DISPATCH(packed_size, d, r, none);
    at_in_straight_ = at_u_straight_ + (backward ? LIRANK_DISPATCH(packed_size, r, d, none) : 0);
    return at_in_straight_ + (backward ? LIRANK_DISPATCH(packed_size, d, n * r, none) : 0);
  }
  int64_t at_u_ = 0, at_u_straight_ = 0, at_in_straight_ = 0;
  Scratch<T> memory_;
};

// y, and where not null what training keeps.
template <typename T>
void forward_layer(const Prepared<T>& p, int64_t batch, T* y, const Kept<T>& kept) {
  const Layer<T>& layer = p.layer;
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, work_of(layer));
    const int64_t size = LIRANK_DISPATCH(small_scratch, layer.d, layer.r, layer.token_dim,
                                         layer.projections, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_small, layer, p.x0, p.x, begin, end, y, kept, scratch);
    });
  } else if (batch < kManySamples || batch < layer.r) {
    const Tiles tiles = tiles_of<T>(batch, work_of(layer));
    const int64_t size = scratch_of(layer, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(cross_forward, layer, p.x0, p.x, begin, end, tiles.vectors, y, kept, scratch);
    });
  } else {
    const Tiles tiles = row_tiles<T>(batch, layer, work_of(layer));
    const PackedWeights<T> packed(layer, true, false);
    over_tiles<T>(tiles, batch, rows_scratch(layer, tiles.samples),
                  [&](int64_t begin, int64_t end, T* scratch) {
                    LIRANK_DISPATCH(cross_rows, layer, packed.weights, p.x0, p.x, begin, end, batch,
                                    y, kept, scratch);
                  });
  }
}

// The result; where `keep` is set also the projections, (B, kept_columns) or with attention
// (B, 3r), and with attention what goes into u, (B, r).
template <typename T>
std::vector<Tensor> forward(const Arguments& a, bool keep) {
  const Prepared<T> p(a);
  const Layer<T>& layer = p.layer;
  const int64_t batch = a.x0.size(0);
  std::vector<Tensor> out = {empty_like_type(a.x0, p.type)};
  T* y = out[0].template mutable_data_ptr<T>();
  Kept<T> kept = {nullptr, nullptr, 0};
  if (keep) {
    kept.columns = layer.projections == 3 ? 3 * layer.r : kept_columns(layer.d, layer.r);
    out.push_back(new_tensor({batch, kept.columns}, p.type));
    if (kept.columns > 0) kept.hidden = out[1].template mutable_data_ptr<T>();
  }
  if (keep && layer.projections == 3) {
    out.push_back(new_tensor({batch, layer.r}, p.type));
    kept.mixed = out[2].template mutable_data_ptr<T>();
  }
  forward_layer(p, batch, y, kept);
  for (Tensor& t : out) t = as_float_type(t, a.x0.scalar_type());
  return out;
}

// Many samples of 16-bit floats, nothing kept: widened and narrowed tile by tile in cache. Whole
// float copies of x0, x and the result took about as long again as the layer.
Tensor forward_short(const Arguments& a) {
  const ScalarType type = a.x0.scalar_type();
  const bool bfloat = type == ScalarType::BFloat16;
  const Tensor x0 = to_contiguous(a.x0), x = to_contiguous(a.x);
  const bool same = x.data_ptr() == x0.data_ptr();
  const int64_t batch = x0.size(0), d = x0.size(1);
  const Weights<float> p(a);
  Tensor out = empty_like_type(x0, type);
  const uint16_t *px0 = (const uint16_t*)x0.const_data_ptr(),
                 *px = (const uint16_t*)x.const_data_ptr();
  uint16_t* y = (uint16_t*)out.mutable_data_ptr();
  const Tiles tiles = row_tiles<float>(batch, p.layer, work_of(p.layer));
  const PackedWeights<float> packed(p.layer, true, false);
  const int64_t size = tiles.samples * d;
  over_tiles<float>(tiles, batch, 3 * size + rows_scratch(p.layer, tiles.samples),
                    [&](int64_t begin, int64_t end, float* scratch) {
                      const int64_t rows = end - begin, n = rows * d;
                      float *wide0 = scratch, *wide = same ? wide0 : scratch + size,
                            *wide_y = scratch + 2 * size;
                      LIRANK_DISPATCH(widen_numbers, px0 + begin * d, bfloat, n, wide0);
                      if (!same) LIRANK_DISPATCH(widen_numbers, px + begin * d, bfloat, n, wide);
                      const Kept<float> nothing = {nullptr, nullptr, 0};
                      LIRANK_DISPATCH(cross_rows, p.layer, packed.weights, wide0, wide, 0, rows,
                                      rows, wide_y, nothing, scratch + 3 * size);
                      LIRANK_DISPATCH(narrow_numbers, wide_y, n, bfloat, y + begin * d);
                    });
  return out;
}

// Products of pairs want 16 samples or more; tiles multiply so fast that one sample may do for 16.
bool takes_bf16_products(const Tensor& x) {
  const Bf16Products has = bf16_products();
  return x.scalar_type() == ScalarType::BFloat16 &&
         (has == Bf16Products::tiles || (has == Bf16Products::pairs && x.size(0) > kSmallBatch));
}

std::vector<Tensor> forward(const char* op, const Arguments& a, bool keep) {
  check_arguments(op, a);
  const int64_t batch = a.x0.size(0);
  if (takes_bf16_products(a.x0)) {
    const int64_t d = a.x0.size(1), r = a.u.size(1);
    return bf16_layer(a, keep, a.kernels.size() == 3 ? 3 * r : kept_columns(d, r));
  }
  if (!keep && is_short(a.x0.scalar_type()) && batch >= kManySamples && batch >= a.u.size(1))
    return {forward_short(a)};
  return a.x0.scalar_type() == ScalarType::Double ? forward<double>(a, keep)
                                                  : forward<float>(a, keep);
}

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
  const bool all = p.layer.projections == 1 || mixed;  // of attention: both or none
  OptionalTensor kept_hidden, kept_mixed;
  if (hidden && all) kept_hidden = as_float_type(*hidden, p.type);
  if (hidden && mixed) kept_mixed = as_float_type(*mixed, p.type);
  const Tensor g = as_float_type(grad, p.type);
  const int64_t batch = a.x0.size(0), d = p.layer.d, r = p.layer.r, n = p.layer.projections;
  std::vector<Tensor> out = {empty_like_type(a.x0, p.type), empty_like_type(a.x, p.type)};
  for (int i = 0; i < n; ++i) out.push_back(empty_like_type(*a.kernels[i].second, p.type));
  out.push_back(empty_like_type(a.u, p.type));
  out.push_back(new_tensor({d}, p.type));
  Tensor own = new_tensor({batch, (n + 1) * r}, p.type);
  Backward<T> io{};
  io.grad = g.const_data_ptr<T>();
  io.x0 = p.x0;
  io.x = p.x;
  io.grad_x0 = out[0].mutable_data_ptr<T>();
  io.grad_x = out[1].mutable_data_ptr<T>();
  io.p = own.mutable_data_ptr<T>();
  io.dh = io.p + batch * r;
  io.low = io.p;
  if (kept_hidden) {
    io.columns = kept_hidden->size(1);
    io.hidden = kept_hidden->template const_data_ptr<T>();
    if (n == 1 && io.columns == r) io.low = io.hidden;
  }
  if (kept_mixed) io.low = kept_mixed->template const_data_ptr<T>();
  const Tiles tiles = row_tiles<T>(batch, p.layer, 3 * work_of(p.layer));
  {
    const PackedWeights<T> packed(p.layer, io.columns < n * r, true);
    over_tiles<T>(tiles, batch, rows_scratch(p.layer, tiles.samples),
                  [&](int64_t begin, int64_t end, T* scratch) {
                    LIRANK_DISPATCH(cross_backward, p.layer, packed.weights, io, begin, end, batch,
                                    scratch);
                  });
  }
  WeightGradient<T> to{};
  for (int i = 0; i < n; ++i) to.in[i] = out[2 + i].mutable_data_ptr<T>();
  to.u = out[2 + n].mutable_data_ptr<T>();
  to.bias = out[3 + n].mutable_data_ptr<T>();
  const int64_t panel = LIRANK_DISPATCH(row_vectors) * LIRANK_DISPATCH(lanes, (const T*)nullptr);
  const Tiles columns = column_tiles(d, panel, tiles.tasks);
  over_tiles<T>(columns, d, LIRANK_DISPATCH(sum_scratch, r, (int)n, panel),
                [&](int64_t begin, int64_t end, T* scratch) {
                  LIRANK_DISPATCH(cross_weights, p.layer, io, batch, begin, end - begin, to,
                                  scratch);
                });
  for (Tensor& t : out) t = as_float_type(t, a.x0.scalar_type());
  return out;
}

std::vector<Tensor> backward(const char* op, const Tensor& grad, const Arguments& a,
                             const OptionalTensor& hidden, const OptionalTensor& mixed) {
  check_arguments(op, a);
  if (hidden) {
    const int64_t all = (int64_t)a.kernels.size() * a.u.size(1);
    check_dim(op, "hidden", *hidden, 2);
    const bool some = a.kernels.size() == 1 && hidden->size(1) < all;
    check_matrix(op, "hidden", *hidden, a.x0.size(0), some ? hidden->size(1) : all,
                 a.x0.scalar_type());
  }
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

// The layers of both stacks, checked against x.
struct NetArguments {
  std::vector<OptionalTensor> biases;  // what the arguments refer to
  std::vector<Arguments> low, high;

  NetArguments(const char* op, const Tensor& x, const Tensors& low_rank, const Tensors& attention,
               double temperature, const Tensors& log_temperatures, int64_t token_dim, bool skip) {
    biases.reserve(low_rank.size() + attention.size());
    for (size_t i = 0; i < low_rank.size(); i += 3) {
      biases.emplace_back(low_rank[i + 2]);
      low.push_back({x, x, {{"v", &low_rank[i]}}, low_rank[i + 1], biases.back()});
      check_arguments(op, low.back());
    }
    for (size_t i = 0; i < attention.size(); i += 5) {
      biases.emplace_back(attention[i + 4]);
      double scale = temperature;
      if (!log_temperatures.empty()) {
        const Tensor t = as_float_type(log_temperatures[i / 5], compute_type(x.scalar_type()));
        const bool wide = t.scalar_type() == ScalarType::Double;
        scale = std::exp(wide ? t.const_data_ptr<double>()[0] : t.const_data_ptr<float>()[0]);
      }
      high.push_back({x,
                      x,
                      {{"q", &attention[i]}, {"k", &attention[i + 1]}, {"v", &attention[i + 2]}},
                      attention[i + 3],
                      biases.back(),
                      scale,
                      token_dim,
                      skip});
      check_arguments(op, high.back());
    }
  }
};

template <typename T>
Tensor net_forward(const Tensor& x, const NetArguments& a, int64_t merge) {
  PreparedNet<T> p;
  for (const Arguments& one : a.low) p.add(0, one);
  for (const Arguments& one : a.high) p.add(1, one);
  const int64_t token_dim = a.high[0].token_dim;
  const int64_t batch = x.size(0), d = x.size(1);
  p.finish(d, merge);
  const Prepared<T>& first = p.stacks[0].front();
  Tensor out = new_tensor({batch, merge == 2 ? 2 * d : d}, first.type);
  T* y = out.mutable_data_ptr<T>();
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, p.work);
    const int64_t size = 2 * tiles.samples * d +
                         LIRANK_DISPATCH(small_scratch, d, p.rank, token_dim, 3, tiles.samples);
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
  return as_float_type(out, x.scalar_type());
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
  const NetArguments a(op, x, low_rank, attention, temperature, log_temperatures, token_dim, skip);
  if (takes_bf16_products(x)) return bf16_net(x, a.low, a.high, merge);
  return x.scalar_type() == ScalarType::Double ? net_forward<double>(x, a, merge)
                                               : net_forward<float>(x, a, merge);
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
