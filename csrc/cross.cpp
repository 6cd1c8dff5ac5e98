// low_rank_cross and attention_cross: checks, CPU kernels, schema.
// Sources: DCN-V2 (arXiv 2008.13535), LiRank (arXiv 2402.06859), section 3.3.
#include "simd/tables/convert_kernels.h"
#include "cross_bf16.h"
#include "cross_net.h"
#include "cross_tasks.h"

namespace lirank {
namespace {

// Columns of the projection that training keeps, such that it keeps at most 55 % of what eager mode
// keeps. With L layers on one input that is d (1 + L) + L columns against d (2 + L) + L r elements
// per sample; the limit is set for L = 2. If not all columns are kept, they fill whole cache lines.
int64_t kept_columns(int64_t d, int64_t r) {
  const int64_t most = (2 * d + 11 * r) / 20;
  return most < r ? most / 16 * 16 : r;
}

// Computes y, and what training keeps unless its pointers are null.
template <typename T>
void forward_layer(const LayerCall<T>& p, int64_t batch, T* y, const SavedActivations<T>& kept) {
  const Layer<T>& layer = p.layer;
  if (batch <= kSmallBatch) {
    const Tiles tiles = small_tiles(batch, work_of(layer));
    const int64_t size = LIRANK_DISPATCH(CrossFewSamples<T>::scratch, layer.d, layer.r,
                                         layer.token_dim, layer.projections, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(CrossFewSamples<T>::layer, layer, p.x0, p.x, begin, end, y, kept, scratch);
    });
  } else if (batch < kManySamples || batch < layer.r) {
    const Tiles tiles = tiles_of<T>(batch, work_of(layer));
    const int64_t size = scratch_of(layer, tiles.samples);
    over_tiles<T>(tiles, batch, size, [&](int64_t begin, int64_t end, T* scratch) {
      LIRANK_DISPATCH(CrossTiles<T>::layer, layer, p.x0, p.x, begin, end, tiles.vectors, y, kept,
                      scratch);
    });
  } else {
    const Tiles tiles = row_tiles<T>(batch, layer, work_of(layer));
    const PackedWeights<T> packed(layer, true, false);
    over_tiles<T>(tiles, batch, rows_scratch(layer, tiles.samples),
                  [&](int64_t begin, int64_t end, T* scratch) {
                    LIRANK_DISPATCH(CrossRows<T>::layer, layer, packed.weights, p.x0, p.x, begin,
                                    end, batch, y, kept, scratch);
                  });
  }
}

// The result; where `keep` is set also the projections, (B, kept_columns) or with attention
// (B, 3r), and with attention what goes into u, (B, r).
template <typename T>
std::vector<Tensor> forward(const LayerArguments& a, bool keep) {
  const LayerCall<T> p(a);
  const Layer<T>& layer = p.layer;
  const int64_t batch = a.x0.size(0);
  std::vector<Tensor> out = {empty_like_type(a.x0, p.type)};
  T* y = out[0].template mutable_data_ptr<T>();
  SavedActivations<T> kept = {nullptr, nullptr, 0};
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
Tensor forward_half(const LayerArguments& a) {
  const ScalarType type = a.x0.scalar_type();
  const bool bfloat = type == ScalarType::BFloat16;
  const Tensor x0 = to_contiguous(a.x0), x = to_contiguous(a.x);
  const bool same = x.data_ptr() == x0.data_ptr();
  const int64_t batch = x0.size(0), d = x0.size(1);
  const LayerWeights<float> p(a);
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
                      float *float_x0 = scratch, *float_x = same ? float_x0 : scratch + size,
                            *wide_y = scratch + 2 * size;
                      LIRANK_DISPATCH(widen_numbers, px0 + begin * d, bfloat, n, float_x0);
                      if (!same) LIRANK_DISPATCH(widen_numbers, px + begin * d, bfloat, n, float_x);
                      const SavedActivations<float> nothing = {nullptr, nullptr, 0};
                      LIRANK_DISPATCH(CrossRows<float>::layer, p.layer, packed.weights, float_x0,
                                      float_x, 0, rows, rows, wide_y, nothing, scratch + 3 * size);
                      LIRANK_DISPATCH(narrow_numbers, wide_y, n, bfloat, y + begin * d);
                    });
  return out;
}

std::vector<Tensor> forward(const char* op, const LayerArguments& a, bool keep) {
  check_arguments(op, a);
  const int64_t batch = a.x0.size(0);
  if (takes_bf16_products(a.x0)) {
    const int64_t d = a.x0.size(1), r = a.u.size(1);
    return bf16_layer(a, keep, a.kernels.size() == 3 ? 3 * r : kept_columns(d, r));
  }
  if (!keep && is_half_precision(a.x0.scalar_type()) && batch >= kManySamples &&
      batch >= a.u.size(1))
    return {forward_half(a)};
  return a.x0.scalar_type() == ScalarType::Double ? forward<double>(a, keep)
                                                  : forward<float>(a, keep);
}

// Blocks of columns for the second pass, evenly on the threads, in whole panels.
template <typename T>
Tiles column_tiles(int64_t d, int64_t threads) {
  threads = threads > 1 ? threads : 1;
  const int64_t panel = LIRANK_DISPATCH(CrossRows<T>::panel);
  const int64_t panels = (d + panel - 1) / panel;
  const int64_t most = LIRANK_DISPATCH(CrossBackward<T>::columns) / panel;
  const int64_t share = (panels + threads - 1) / threads, each = share < most ? share : most;
  const int64_t count = (panels + each - 1) / each;
  return {each * panel, count, threads < count ? threads : count, 0};
}

// Gradients of x0, x, the kernels, u and bias, in that order.
template <typename T>
std::vector<Tensor> backward(const Tensor& grad, const LayerArguments& a,
                             const OptionalTensor& hidden, const OptionalTensor& mixed) {
  const LayerCall<T> p(a);
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
  io.into_u = io.p;
  if (kept_hidden) {
    io.columns = kept_hidden->size(1);
    io.hidden = kept_hidden->template const_data_ptr<T>();
    if (n == 1 && io.columns == r) io.into_u = io.hidden;
  }
  if (kept_mixed) io.into_u = kept_mixed->template const_data_ptr<T>();
  const Tiles tiles = row_tiles<T>(batch, p.layer, 3 * work_of(p.layer));
  {
    const PackedWeights<T> packed(p.layer, io.columns < n * r, true);
    over_tiles<T>(tiles, batch, rows_scratch(p.layer, tiles.samples),
                  [&](int64_t begin, int64_t end, T* scratch) {
                    LIRANK_DISPATCH(CrossBackward<T>::rows, p.layer, packed.weights, io, begin, end,
                                    batch, scratch);
                  });
  }
  WeightGradient<T> to{};
  for (int i = 0; i < n; ++i) to.in[i] = out[2 + i].mutable_data_ptr<T>();
  to.u = out[2 + n].mutable_data_ptr<T>();
  to.bias = out[3 + n].mutable_data_ptr<T>();
  const Tiles columns = column_tiles<T>(d, tiles.tasks);
  over_tiles<T>(columns, d, LIRANK_DISPATCH(CrossBackward<T>::weights_scratch, r, (int)n),
                [&](int64_t begin, int64_t end, T* scratch) {
                  LIRANK_DISPATCH(CrossBackward<T>::weights, p.layer, io, batch, begin, end - begin,
                                  to, scratch);
                });
  for (Tensor& t : out) t = as_float_type(t, a.x0.scalar_type());
  return out;
}

std::vector<Tensor> backward(const char* op, const Tensor& grad, const LayerArguments& a,
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

std::tuple<Tensor, Tensor> low_rank_cross_train(const Tensor& x0, const Tensor& x, const Tensor& v,
                                                const Tensor& u, const OptionalTensor& bias) {
  const auto outputs = forward("low_rank_cross", {x0, x, {{"v", &v}}, u, bias}, true);
  return {outputs[0], outputs[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> low_rank_cross_backward(
    const Tensor& grad, const Tensor& x0, const Tensor& x, const Tensor& v, const Tensor& u,
    const OptionalTensor& bias, const OptionalTensor& hidden) {
  const auto g =
      backward("low_rank_cross_backward", grad, {x0, x, {{"v", &v}}, u, bias}, hidden, {});
  return {g[0], g[1], g[2], g[3], g[4]};
}

std::tuple<Tensor, Tensor, Tensor> attention_cross_train(
    const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& u, const OptionalTensor& bias, double temperature, int64_t token_dim, bool skip) {
  const LayerArguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                            token_dim, skip};
  const auto outputs = forward("attention_cross", a, true);
  return {outputs[0], outputs[1], outputs[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_cross_backward(
    const Tensor& grad, const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& u, const OptionalTensor& bias, double temperature,
    int64_t token_dim, bool skip, const OptionalTensor& hidden, const OptionalTensor& mixed) {
  const LayerArguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                            token_dim, skip};
  const auto g = backward("attention_cross_backward", grad, a, hidden, mixed);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

}  // namespace

Tensor low_rank_cross(const Tensor& x0, const Tensor& x, const Tensor& v, const Tensor& u,
                      const OptionalTensor& bias) {
  return forward("low_rank_cross", {x0, x, {{"v", &v}}, u, bias}, false)[0];
}

Tensor attention_cross(const Tensor& x0, const Tensor& x, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& u, const OptionalTensor& bias,
                       double temperature, int64_t token_dim, bool skip) {
  const LayerArguments a = {x0,        x,   {{"q", &q}, {"k", &k}, {"v", &v}}, u, bias, temperature,
                            token_dim, skip};
  return forward("attention_cross", a, false)[0];
}

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
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("low_rank_cross", TORCH_BOX(&low_rank_cross));
  m.impl("low_rank_cross_train", TORCH_BOX(&low_rank_cross_train));
  m.impl("low_rank_cross_backward", TORCH_BOX(&low_rank_cross_backward));
  m.impl("attention_cross", TORCH_BOX(&attention_cross));
  m.impl("attention_cross_train", TORCH_BOX(&attention_cross_train));
  m.impl("attention_cross_backward", TORCH_BOX(&attention_cross_backward));
}

}  // namespace lirank
