// The cost rule of residual_cross_score: what of a request is computed once.
//
// Costs are multiply-adds. For each request the cheapest way is taken of: joined rows, as the net
// itself takes them, and the candidates' halves alone, each stack's inner layers folded or not, the
// weight folded or not. A fold is paid once per request; what it saves, once per candidate. A tile
// pays for whole vectors of candidates, beyond kFew of them.
#pragma once
#include <cstdint>

namespace lirank {

// Up to so many candidates of a request take the kernel for few samples, which pads nothing.
constexpr int64_t kFew = 24;

// What sharing a request costs besides its products, in multiply-adds: the tables and the scratch
// of its folds, and the shorter products. For readings see benchmarks/CROSSOVERS.md.
constexpr double kShared = 1 << 19;

// Stacks of more layers take joined rows: the kernels have room for the places of so many.
constexpr int64_t kMostLayers = 64;

struct StackShape {
  int64_t layers = 0, rank = 0, projections = 1;
};

struct ScoreShape {
  StackShape stacks[2];
  int64_t d = 0, d_u = 0;
  int64_t m = 0;  // rows of the weight, 0 without
  bool concatenated = false;
  int64_t lanes = 1;
};

struct Plan {
  bool joined = false;
  bool inner[2] = {true, true};
  bool outer = false;
};

// Multiply-adds of one candidate on a joined row.
inline double joined_cost(const ScoreShape& s) {
  double cost = 0;
  for (const StackShape& one : s.stacks)
    cost += (double)one.layers * (one.projections + 1) * s.d * one.rank;
  return cost + (double)s.m * s.d * (s.concatenated ? 2 : 1);
}

// Candidates that are computed for `n` of one request, by either way.
inline double padded(const ScoreShape& s, int64_t n) {
  return (double)(n <= kFew ? n : (n + s.lanes - 1) / s.lanes * s.lanes);
}

// Multiply-adds of `n` candidates of one request by a plan that is not joined.
inline double shared_cost(const ScoreShape& s, const Plan& plan, int64_t n) {
  const double d_u = (double)s.d_u, d_c = (double)(s.d - s.d_u), m = (double)s.m;
  double once = kShared, each = m * d_c * (s.concatenated ? 2 : 1);
  for (int i = 0; i < 2; ++i) {
    const StackShape& one = s.stacks[i];
    const double layers = (double)one.layers, r = (double)one.rank, p = (double)one.projections;
    if (one.layers == 0) continue;
    const double pairs = layers * (layers - 1) / 2;
    once += p * r * d_u * (plan.inner[i] ? layers : 1);
    each += layers * (p + 1) * d_c * r;
    if (plan.inner[i]) {
      once += d_u * p * r * r * pairs;
      each += p * r * r * pairs;
    } else {
      each += (layers - 1) * p * d_u * r;  // V^u of the inner layers
    }
    // Layers whose U^u is needed: those before an inner layer, or all before the weight.
    const double halves = !plan.outer ? layers : plan.inner[i] ? 0 : layers - 1;
    each += halves * d_u * r;
    if (plan.outer) {
      once += d_u * m * (r * layers + 1);
      each += m * r * layers;
    }
  }
  if (!plan.outer) each += m * d_u * (s.concatenated ? 2 : 1);
  return once + padded(s, n) * each;
}

inline Plan plan_of(const ScoreShape& s, int64_t n) {
  Plan best;
  best.joined = true;
  if (n <= 1) return best;  // nothing to share
  if (s.stacks[0].layers > kMostLayers || s.stacks[1].layers > kMostLayers) return best;
  double least = joined_cost(s) * padded(s, n);
  for (int choice = 0; choice < 8; ++choice) {
    Plan plan;
    plan.inner[0] = choice & 1;
    plan.inner[1] = choice & 2;
    plan.outer = choice & 4;
    if (plan.outer && s.m == 0) continue;
    // A stack with nothing to fold has one way only.
    bool same = false;
    for (int i = 0; i < 2; ++i) same = same || (s.stacks[i].layers < 2 && !plan.inner[i]);
    if (same) continue;
    const double cost = shared_cost(s, plan, n);
    if (cost < least) {
      least = cost;
      best = plan;
    }
  }
  return best;
}

}  // namespace lirank
