// How the work of a cross layer is cut into tasks, which kernels serve a batch, and the weights
// that these pack.
#pragma once
#include "cross_host.h"

#include <vector>

namespace lirank {

// A task of fewer multiply-adds does not wake a thread: they take about 10 microseconds.
constexpr int64_t kWork = 1 << 19;
// Batches up to this size take simd/cross_few_samples.h. The choice depends on nothing else, so
// that a result does not depend on the number of threads.
constexpr int64_t kSmallBatch = 24;
// A single layer takes simd/cross_rows.h, which packs the weights, if the batch has at least so
// many samples and at least r. With 96 samples it took 0.174 ms instead of 0.194 (d = 512, r = 64,
// one thread). On two threads 128 samples still lose 9 %.
constexpr int64_t kManySamples = 96;

// How a batch is cut into tiles. A sample's result does not depend on it.
struct Tiles {
  int64_t samples, count, tasks;
  int vectors;
};

template <typename T>
Tiles tiles_of(int64_t batch, int64_t work_per_sample) {
  const int64_t lanes = LIRANK_DISPATCH(CrossTiles<T>::lanes);
  const int64_t most = LIRANK_DISPATCH(CrossTiles<T>::most_vectors);
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
  return LIRANK_DISPATCH(CrossTiles<T>::scratch, layer.d, layer.r, layer.token_dim,
                         layer.projections, lanes);
}

template <typename T>
int64_t rows_scratch(const Layer<T>& layer, int64_t samples) {
  return LIRANK_DISPATCH(CrossRows<T>::scratch, layer.d, layer.r, layer.token_dim,
                         layer.projections, samples);
}

// Tasks of consecutive samples for a small batch.
inline Tiles small_tiles(int64_t batch, int64_t work_per_sample) {
  const int64_t all = torch::stable::get_num_threads();
  int64_t tasks = 1 + batch * work_per_sample / kWork;
  tasks = tasks < all ? tasks : all;
  const int64_t samples = batch > tasks ? (batch + tasks - 1) / tasks : 1;
  const int64_t count = (batch + samples - 1) / samples;
  return {samples, count, count, 0};
}

// Samples per tile of the row kernels. The block, its results and what is fetched for the next tile
// fit into L2 beside 128 KB of weights. That allows 24 samples up to a width of 512 floats, and up
// to 1024 with AVX-512, whose processors have 1 or 2 MB of L2. Weights that do not fit into L2 come
// from L3 once per tile, so tiles then have 48 samples: 2048 samples of d = 1024, r = 256 took 21.3
// ms instead of 22.9 on a Xeon with AMX, and a training step 80 ms instead of 86.
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
    std::vector<PackJob<T>> all;
    const int64_t d = layer.d, r = layer.r, n = layer.projections;
    for (int64_t s = 0; projections && s < n; ++s)
      all.push_back({layer.in[s], d, r, d, 0, true, to + s * weights.in_size});
    all.push_back({layer.u, r, d, r, 0, true, to + at_u_});
    if (backward) {
      all.push_back({layer.u, d, r, d, 0, false, to + at_u_straight_});
      for (int64_t s = 0; s < n; ++s)
        all.push_back({layer.in[s], r, d, n * r, s * r, false, to + at_in_straight_});
    }
    const int64_t count = (int64_t)all.size() * kParts, grain = 1 + kParts * kPacked / (d * r);
    torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        LIRANK_DISPATCH(CrossRows<T>::pack, all[i / kParts], i % kParts, kParts);
    });
  }
  WeightPanels<T> weights{};

 private:
  static constexpr int64_t kParts = 8;         // of one matrix: shared out evenly on threads
  static constexpr int64_t kPacked = 1 << 16;  // weights a thread packs in about 10 microseconds

  int64_t plan(const Layer<T>& layer, bool projections, bool backward) {
    const int64_t d = layer.d, r = layer.r, n = layer.projections;
    weights.in_size = LIRANK_DISPATCH(CrossRows<T>::packed_size, r, d);
    at_u_ = projections ? n * weights.in_size : 0;
    at_u_straight_ = at_u_ + LIRANK_DISPATCH(CrossRows<T>::packed_size, d, r);
    at_in_straight_ =
        at_u_straight_ + (backward ? LIRANK_DISPATCH(CrossRows<T>::packed_size, r, d) : 0);
    return at_in_straight_ + (backward ? LIRANK_DISPATCH(CrossRows<T>::packed_size, d, n * r) : 0);
  }
  int64_t at_u_ = 0, at_u_straight_ = 0, at_in_straight_ = 0;
  Scratch<T> memory_;
};

// Products of pairs want 16 samples or more; tiles multiply so fast that one sample may do for 16.
inline bool takes_bf16_products(const Tensor& x) {
  const Bf16Products has = bf16_products();
  return x.scalar_type() == ScalarType::BFloat16 &&
         (has == Bf16Products::tiles || (has == Bf16Products::pairs && x.size(0) > kSmallBatch));
}

}  // namespace lirank
