// Isotonic calibration, forward and backward, for one instruction set.
//
// A logit x is in bucket i = floor((clamp(x) - lower) / step). Without an embedding the sum over
// buckets is a prefix sum, so a sample costs two gathers and one multiply-add. It moves 8 bytes in
// float32, and copy bandwidth is the limit. With an embedding (B, k) only the buckets up to i are
// read, and reading them is the limit.

template <typename V>
struct Bucket {
  V index, part;  // part: how far into the bucket
};

// max(a, b) and min(a, b) give b where either is not a number. The order of the operands
// below keeps a NaN in `part` and keeps it out of `index`.
template <typename V>
LR_INLINE Bucket<V> bucket_of(V input, V lower, V width, V step, V inverse, V last) {
  const V zero = V::set1(0);
  const V z = min(width, max(zero, input - lower));
  const V index = floor(min(max(z * inverse, zero), last));
  return {index, min(step, max(zero, z - index * step))};
}

// prefix[i] = lower + bias + step * sum_{j<i} relu(weight_j); slope[i] = relu(weight_i)
template <typename T>
void Isotonic<T>::calibrate(const T* x, int64_t n, const T* prefix, const T* slope, int64_t buckets,
                            T lower, T step, T* out) {
  using V = Vec<T>;
  const V lo = V::set1(lower), width = V::set1((T)buckets * step), s = V::set1(step);
  const V inverse = V::set1((T)1 / step), last = V::set1((T)(buckets - 1));
  for (int64_t i = 0; i < n; i += V::N) {
    const int64_t left = n - i;
    const V input = left >= V::N ? V::load(x + i) : V::load(x + i, left);
    const Bucket<V> b = bucket_of(input, lo, width, s, inverse, last);
    const V y = fma(gather(slope, b.index), b.part, gather(prefix, b.index));
    if (left >= V::N)
      y.store(out + i);
    else
      y.store(out + i, left);
  }
}

// grad_x = slope[i] * g inside the range, 0 outside. counts[i] += g and parts[i] += g * part
// are what the weight gradient is built from.
template <typename T>
void Isotonic<T>::calibrate_backward(const T* grad, const T* x, int64_t n, const T* slope,
                                     int64_t buckets, T lower, T step, T* grad_x, double* counts,
                                     double* parts) {
  using V = Vec<T>;
  const V lo = V::set1(lower), width = V::set1((T)buckets * step), s = V::set1(step);
  const V inverse = V::set1((T)1 / step), last = V::set1((T)(buckets - 1));
  const V high = V::set1(lower + (T)buckets * step);
  for (int64_t i = 0; i < n; i += V::N) {
    const int64_t left = n - i < V::N ? n - i : V::N;
    const V input = V::load(x + i, left), g = V::load(grad + i, left);
    const Bucket<V> b = bucket_of(input, lo, width, s, inverse, last);
    where_between(input, lo, high, g * gather(slope, b.index)).store(grad_x + i, left);
    T index[V::N], part[V::N];
    b.index.store(index);
    b.part.store(part);
    for (int64_t lane = 0; lane < left; ++lane) {
      const double gradient = (double)grad[i + lane];
      counts[(int64_t)index[lane]] += gradient;
      parts[(int64_t)index[lane]] += gradient * (double)part[lane];
    }
  }
}

// One sample with its own row e of the embedding: sum_i relu(e_i + w_i) * v_i.
template <typename T>
LR_INLINE T calibrate_row(T x, const T* e, const T* w, int64_t buckets, T base, T lower, T step) {
  using V = Vec<T>;
  const Bucket<V> b = bucket_of(V::set1(x), V::set1(lower), V::set1((T)buckets * step),
                                V::set1(step), V::set1((T)1 / step), V::set1((T)(buckets - 1)));
  T lane[V::N];
  b.index.store(lane);
  const int64_t full = (int64_t)lane[0];
  b.part.store(lane);
  V total = V::set1(0);
  for (int64_t i = 0; i < full; i += V::N) {
    const int64_t left = full - i < V::N ? full - i : V::N;
    const V a = V::load(e + i, left) + V::load(w + i, left);
    total = total + max(a, V::set1(0));
  }
  const T at = e[full] + w[full];
  return base + step * sum(total) + (at > 0 ? at : (T)0) * lane[0];
}

// The same sample backward: grad_e_i = g * v_i where e_i + w_i > 0, added to `sums` as well.
// Returns grad_x. Tried and dropped: column sums of grad_e in a pass of their own (read it
// again from beyond the cache, and not in vectors).
template <typename T>
LR_INLINE T calibrate_row_backward(T g, T x, const T* e, const T* w, int64_t buckets, T lower,
                                   T step, T* grad_e, T* sums) {
  using V = Vec<T>;
  const Bucket<V> b = bucket_of(V::set1(x), V::set1(lower), V::set1((T)buckets * step),
                                V::set1(step), V::set1((T)1 / step), V::set1((T)(buckets - 1)));
  T lane[V::N];
  b.index.store(lane);
  const int64_t full = (int64_t)lane[0];
  b.part.store(lane);
  const V whole = V::set1(g * step);
  int64_t i = 0;
  for (; i + V::N <= full; i += V::N) {
    const V share = where_positive(V::load(e + i) + V::load(w + i), whole);
    share.store(grad_e + i);
    (V::load(sums + i) + share).store(sums + i);
  }
  for (; i < full; ++i) {
    grad_e[i] = e[i] + w[i] > 0 ? g * step : (T)0;
    sums[i] += grad_e[i];
  }
  const T at = e[full] + w[full];
  grad_e[full] = at > 0 ? g * lane[0] : (T)0;
  sums[full] += grad_e[full];
  memset(grad_e + full + 1, 0, (buckets - full - 1) * sizeof(T));
  const bool inside = x >= lower && x <= lower + (T)buckets * step;
  return inside && at > 0 ? g * at : (T)0;
}

template <typename T>
void Isotonic<T>::calibrate_rows(const T* x, const T* e, const T* w, int64_t begin, int64_t end,
                                 int64_t buckets, T base, T lower, T step, T* out) {
  for (int64_t i = begin; i < end; ++i)
    out[i] = calibrate_row(x[i], e + i * buckets, w, buckets, base, lower, step);
}

template <typename T>
void Isotonic<T>::calibrate_rows_backward(const T* g, const T* x, const T* e, const T* w,
                                          int64_t begin, int64_t end, int64_t buckets, T lower,
                                          T step, T* grad_x, T* grad_e, T* sums) {
  for (int64_t i = begin; i < end; ++i)
    grad_x[i] = calibrate_row_backward(g[i], x[i], e + i * buckets, w, buckets, lower, step,
                                       grad_e + i * buckets, sums);
}

template struct Isotonic<float>;
template struct Isotonic<double>;
