// isotonic_calibration: checks, CPU kernels, schema.
// Source: LiRank (arXiv 2402.06859), equation 1.
#include "library/checks.h"
#include "library/convert.h"
#include "simd/tables/isotonic_kernels.h"

#include <vector>

namespace lirank {
namespace {

constexpr const char* kOp = "isotonic_calibration";
// Samples per task. The weight gradient keeps one histogram per task and adds them in
// order, so it is bit-equal for any number of threads.
constexpr int64_t kChunk = 16384;
// With an embedding: rows whose gradients are added up in the input's precision while they are
// in cache, before they go into double precision. Fixed, for the same reason.
constexpr int64_t kSumRows = 64;
// Edges and widths beyond these leave float32's range before the logit does.
constexpr double kLeast = 1e-30, kMost = 1e30;

void check_arguments(const char* op, const Tensor& logits, const Tensor& weight, const Tensor& bias,
                     double lower, double step, const OptionalTensor& embedding) {
  check_floating(op, "logits", logits);
  check_dim(op, "weight", weight, 1);
  LIRANK_CHECK(weight.size(0) > 0, op, "weight", "wanted at least one bucket, got shape ",
               shape(weight));
  LIRANK_CHECK(weight.size(0) < (1 << 24), op, "weight", "wanted fewer than 2^24 buckets, got ",
               weight.size(0));
  check_same_dtype(op, "weight", weight, logits.scalar_type());
  check_same_dtype(op, "bias", bias, logits.scalar_type());
  LIRANK_CHECK(bias.numel() == 1 && bias.dim() <= 1, op, "bias", "wanted shape () or (1,), got ",
               shape(bias));
  LIRANK_CHECK(step >= kLeast && step <= kMost, op, "step",
               "wanted a number from 1e-30 to 1e+30, got ", step);
  LIRANK_CHECK(lower >= -kMost && lower <= kMost, op, "lower",
               "wanted a number from -1e+30 to 1e+30, got ", lower);
  if (!embedding) return;
  check_same_dtype(op, "embedding", *embedding, logits.scalar_type());
  bool fits = embedding->dim() == logits.dim() + 1 &&
              embedding->size(embedding->dim() - 1) == weight.size(0);
  for (int64_t i = 0; fits && i < logits.dim(); ++i) fits = embedding->size(i) == logits.size(i);
  LIRANK_CHECK(fits, op, "embedding", "wanted the shape of logits with a last axis of ",
               weight.size(0), ", got ", shape(*embedding), " for logits ", shape(logits));
}

template <typename T>
T first(const Tensor& t) {
  return t.const_data_ptr<T>()[0];
}

template <typename T>
std::vector<T> slopes(const T* weight, int64_t k) {
  std::vector<T> slope(k);
  // written so that a NaN weight stays NaN, as relu keeps it
  for (int64_t i = 0; i < k; ++i) slope[i] = weight[i] < 0 ? T(0) : weight[i];
  return slope;
}

template <typename T>
Tensor forward(const Tensor& logits, const Tensor& weight, const Tensor& bias, T lower, T step,
               const OptionalTensor& embedding, ScalarType type) {
  const Tensor x = as_float_type(logits, type), w = as_float_type(weight, type),
               b = as_float_type(bias, type);
  Tensor out = empty_like_type(x, type);
  const int64_t n = x.numel(), k = w.numel();
  const T* px = x.const_data_ptr<T>();
  T* po = out.mutable_data_ptr<T>();
  if (embedding) {
    const Tensor e = as_float_type(*embedding, type);
    const T* pe = e.const_data_ptr<T>();
    const T base = lower + first<T>(b);
    torch::stable::parallel_for(0, n, 1 + kChunk / k, [&](int64_t begin, int64_t end) {
      LIRANK_DISPATCH(Isotonic<T>::calibrate_rows, px, pe, w.const_data_ptr<T>(), begin, end, k,
                      base, lower, step, po);
    });
    return out;
  }
  const std::vector<T> slope = slopes(w.const_data_ptr<T>(), k);
  std::vector<T> prefix(k);
  double running = (double)lower + (double)first<T>(b);
  for (int64_t i = 0; i < k; ++i) {
    prefix[i] = (T)running;
    running += (double)step * (double)slope[i];
  }
  torch::stable::parallel_for(0, n, kChunk, [&](int64_t begin, int64_t end) {
    LIRANK_DISPATCH(Isotonic<T>::calibrate, px + begin, end - begin, prefix.data(), slope.data(), k,
                    lower, step, po + begin);
  });
  return out;
}

Tensor isotonic_calibration(const Tensor& logits, const Tensor& weight, const Tensor& bias,
                            double lower, double step, const OptionalTensor& embedding) {
  check_arguments(kOp, logits, weight, bias, lower, step, embedding);
  const ScalarType type = compute_type(logits.scalar_type());
  const Tensor out =
      type == ScalarType::Double
          ? forward<double>(logits, weight, bias, lower, step, embedding, type)
          : forward<float>(logits, weight, bias, (float)lower, (float)step, embedding, type);
  return as_float_type(out, logits.scalar_type());
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// grad_weight[i] = [w_i > 0] * (parts[i] + step * sum_{j>i} counts[j])
template <typename T>
void weight_gradient(const std::vector<double>& histograms, int64_t tasks, int64_t k, T step,
                     const T* weight, T* out) {
  std::vector<double> total(2 * k, 0.0);
  for (int64_t t = 0; t < tasks; ++t)
    for (int64_t i = 0; i < 2 * k; ++i) total[i] += histograms[t * 2 * k + i];
  double above = 0;
  for (int64_t i = k - 1; i >= 0; --i) {
    out[i] = weight[i] > 0 ? (T)(total[k + i] + (double)step * above) : T(0);
    above += total[i];
  }
}

template <typename T>
Gradients backward(const Tensor& grad, const Tensor& logits, const Tensor& weight,
                   const Tensor& bias, T lower, T step, const OptionalTensor& embedding,
                   ScalarType type) {
  const Tensor g = as_float_type(grad, type), x = as_float_type(logits, type),
               w = as_float_type(weight, type);
  const int64_t n = x.numel(), k = w.numel();
  Tensor grad_x = empty_like_type(x, type), grad_w = empty_like_type(w, type);
  Tensor grad_b = empty_like_type(bias, type);
  Tensor grad_e = empty_like_type(embedding ? *embedding : weight, type);
  const T *pg = g.const_data_ptr<T>(), *px = x.const_data_ptr<T>(), *pw = w.const_data_ptr<T>();
  T* pgx = grad_x.mutable_data_ptr<T>();
  double bias_total = 0;
  for (int64_t i = 0; i < n; ++i) bias_total += (double)pg[i];
  grad_b.mutable_data_ptr<T>()[0] = (T)bias_total;
  if (embedding) {
    const Tensor e = as_float_type(*embedding, type);
    const T* pe = e.const_data_ptr<T>();
    T* pge = grad_e.mutable_data_ptr<T>();
    const int64_t tasks = (n + kSumRows - 1) / kSumRows, most = 1 + kChunk / k / kSumRows;
    std::vector<T> sums(tasks * k, T(0));
    torch::stable::parallel_for(0, tasks, most, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t from = t * kSumRows, to = n - from < kSumRows ? n : from + kSumRows;
        LIRANK_DISPATCH(Isotonic<T>::calibrate_rows_backward, pg, px, pe, pw, from, to, k, lower,
                        step, pgx, pge, sums.data() + t * k);
      }
    });
    std::vector<double> total(k, 0.0);
    for (int64_t t = 0; t < tasks; ++t)
      for (int64_t i = 0; i < k; ++i) total[i] += (double)sums[t * k + i];
    for (int64_t i = 0; i < k; ++i) grad_w.mutable_data_ptr<T>()[i] = (T)total[i];
    return {grad_x, grad_w, grad_b, grad_e};
  }
  const std::vector<T> slope = slopes(pw, k);
  const int64_t tasks = (n + kChunk - 1) / kChunk;
  std::vector<double> histograms(tasks * 2 * k, 0.0);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t from = t * kChunk, size = n - from < kChunk ? n - from : kChunk;
      double* mine = histograms.data() + t * 2 * k;
      LIRANK_DISPATCH(Isotonic<T>::calibrate_backward, pg + from, px + from, size, slope.data(), k,
                      lower, step, pgx + from, mine, mine + k);
    }
  });
  weight_gradient(histograms, tasks, k, step, pw, grad_w.mutable_data_ptr<T>());
  for (int64_t i = 0; i < k; ++i) grad_e.mutable_data_ptr<T>()[i] = T(0);
  return {grad_x, grad_w, grad_b, grad_e};
}

Gradients isotonic_calibration_backward(const Tensor& grad, const Tensor& logits,
                                        const Tensor& weight, const Tensor& bias, double lower,
                                        double step, const OptionalTensor& embedding) {
  const char* op = "isotonic_calibration_backward";
  check_arguments(op, logits, weight, bias, lower, step, embedding);
  check_same_dtype(op, "grad", grad, logits.scalar_type());
  bool same = grad.dim() == logits.dim();
  for (int64_t i = 0; same && i < grad.dim(); ++i) same = grad.size(i) == logits.size(i);
  LIRANK_CHECK(same, op, "grad", "wanted shape ", shape(logits), ", got ", shape(grad));
  const ScalarType type = compute_type(logits.scalar_type());
  auto [gx, gw, gb, ge] =
      type == ScalarType::Double
          ? backward<double>(grad, logits, weight, bias, lower, step, embedding, type)
          : backward<float>(grad, logits, weight, bias, (float)lower, (float)step, embedding, type);
  const ScalarType out = logits.scalar_type();
  return {as_float_type(gx, out), as_float_type(gw, out), as_float_type(gb, out),
          as_float_type(ge, out)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "isotonic_calibration(Tensor logits, Tensor weight, Tensor bias, float lower, float step, "
      "Tensor? embedding=None) -> Tensor");
  m.def(
      "isotonic_calibration_backward(Tensor grad, Tensor logits, Tensor weight, Tensor bias, "
      "float lower, float step, Tensor? embedding=None) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("isotonic_calibration", TORCH_BOX(&isotonic_calibration));
  m.impl("isotonic_calibration_backward", TORCH_BOX(&isotonic_calibration_backward));
}

}  // namespace lirank
