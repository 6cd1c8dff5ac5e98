// outer_attention: checks, CPU kernels, schema.
// Source: LiRank (arXiv 2402.06859), section 3.3.
#include "cross_host.h"

namespace lirank {
namespace {

// Scores per task below which a thread is not woken: about 10 microseconds.
constexpr int64_t kScores = 1 << 15;

void check_arguments(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     double temperature, int64_t token_dim) {
  check_floating(op, "q", q);
  check_dim(op, "q", q, 2);
  LIRANK_CHECK(q.size(1) > 0, op, "q", "wanted a rank of at least 1, got ", shape(q));
  for (const auto& [name, t] : {std::pair("k", &k), std::pair("v", &v)}) {
    check_same_dtype(op, name, *t, q.scalar_type());
    check_same_shape(op, name, *t, q);
  }
  LIRANK_CHECK(temperature >= kLeastTemperature, op, "temperature",
               "wanted a number of 1e-30 or more, got ", temperature);
  LIRANK_CHECK(token_dim > 0 && q.size(1) % token_dim == 0, op, "token_dim",
               "wanted a divisor of the rank ", q.size(1), ", got ", token_dim);
}

// Calls run(begin, end, scratch) over ranges of samples.
template <typename T, typename Run>
void over_samples(int64_t batch, int64_t r, int64_t t, const Run& run) {
  const int64_t grain = 1 + kScores / (r * r / t + 1);
  const int64_t most = torch::stable::get_num_threads(), wanted = (batch + grain - 1) / grain;
  const int64_t tasks = wanted < most ? wanted : most;
  const Scratch<T> scratch(tasks, attention_scratch(r, t));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      run(batch * i / tasks, batch * (i + 1) / tasks, scratch.of(i));
  });
}

template <typename T>
Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, double temperature, int64_t t) {
  const ScalarType type = compute_type(q.scalar_type());
  const Tensor cq = as_float_type(q, type), ck = as_float_type(k, type),
               cv = as_float_type(v, type);
  Tensor out = empty_like_type(q, type);
  const T *pq = cq.const_data_ptr<T>(), *pk = ck.const_data_ptr<T>(), *pv = cv.const_data_ptr<T>();
  T* po = out.mutable_data_ptr<T>();
  const int64_t r = q.size(1);
  const T scale = score_scale<T>(temperature, t);
  over_samples<T>(q.size(0), r, t, [&](int64_t begin, int64_t end, T* scratch) {
    LIRANK_DISPATCH(CrossAttention<T>::rows, pq, pk, pv, begin, end, r, t, scale, po, scratch);
  });
  return as_float_type(out, q.scalar_type());
}

Tensor outer_attention(const Tensor& q, const Tensor& k, const Tensor& v, double temperature,
                       int64_t token_dim) {
  check_arguments("outer_attention", q, k, v, temperature, token_dim);
  return q.scalar_type() == ScalarType::Double ? forward<double>(q, k, v, temperature, token_dim)
                                               : forward<float>(q, k, v, temperature, token_dim);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
Gradients backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                   double temperature, int64_t t) {
  const ScalarType type = compute_type(q.scalar_type()), out = q.scalar_type();
  const Tensor cg = as_float_type(grad, type), cq = as_float_type(q, type),
               ck = as_float_type(k, type);
  const Tensor cv = as_float_type(v, type);
  Tensor gq = empty_like_type(q, type), gk = empty_like_type(q, type);
  Tensor gv = empty_like_type(q, type);
  const T *pg = cg.const_data_ptr<T>(), *pq = cq.const_data_ptr<T>();
  const T *pk = ck.const_data_ptr<T>(), *pv = cv.const_data_ptr<T>();
  T *oq = gq.mutable_data_ptr<T>(), *ok = gk.mutable_data_ptr<T>(), *ov = gv.mutable_data_ptr<T>();
  const int64_t r = q.size(1);
  const T scale = score_scale<T>(temperature, t), inverse = score_inverse<T>(temperature, t);
  over_samples<T>(q.size(0), r, t, [&](int64_t begin, int64_t end, T* scratch) {
    LIRANK_DISPATCH(CrossAttention<T>::rows_backward, pg, pq, pk, pv, begin, end, r, t, scale,
                    inverse, oq, ok, ov, scratch);
  });
  return {as_float_type(gq, out), as_float_type(gk, out), as_float_type(gv, out)};
}

Gradients outer_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                   const Tensor& v, double temperature, int64_t token_dim) {
  const char* op = "outer_attention_backward";
  check_arguments(op, q, k, v, temperature, token_dim);
  check_same_dtype(op, "grad", grad, q.scalar_type());
  check_same_shape(op, "grad", grad, q);
  return q.scalar_type() == ScalarType::Double
             ? backward<double>(grad, q, k, v, temperature, token_dim)
             : backward<float>(grad, q, k, v, temperature, token_dim);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "outer_attention(Tensor q, Tensor k, Tensor v, float temperature=1.0, int token_dim=1) "
      "-> Tensor");
  m.def(
      "outer_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, float temperature=1.0, "
      "int token_dim=1) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("outer_attention", TORCH_BOX(&outer_attention));
  m.impl("outer_attention_backward", TORCH_BOX(&outer_attention_backward));
}

}  // namespace lirank
