// A chain of planar steps on a tile of points, and its derivatives.
//
//     û_k = u_k + lift_k w_k,   lift = (m(a) − a) / ‖w‖²,   a = w·u,   m(a) = softplus(a + shift) − 1
//     p_k = w_k·z + b_k,   z ← z + û_k tanh(p_k),   ladj += log(h² + (1 − h²) s),   s = 1 + m(a)
//
// The same formulas as varflow/flows/planar.py, which says why they are written so.
//
// Numbers are handled a vector of lanes at a time. Lanes are points where many points share one
// parameter set (parameters are then plain numbers, type P = T), and parameter sets where each set
// has few points (P = Vec). A tile is N such vectors side by side, so that the latency of one is
// hidden behind the others. Everything a tile needs stays in the first- or second-level cache.

#pragma once

#include "vector.h"

namespace varflow {

constexpr int kWide = 4;  // vectors in a tile, where there are enough points

// What a step needs of a = w·u and ‖w‖², and the derivatives of it.
template <class T, class P>
struct Constraint {
  P *lift, *s, *log_s;
  P *ds;          // ∂s/∂a
  P *dlift;       // ∂lift/∂a
  P *dlift_norm;  // ∂lift/∂‖w‖²
};

struct Shift {
  double shift, t, at_zero;
  explicit Shift(double x)
      : shift(x), t(1 / (1 + std::exp(x))), at_zero(x == 0 ? std::log(2.0) - 1 : 0) {}
};

template <class T>
INLINE void constrain(Vec<T> a, Vec<T> norm, const Shift& c, int k, const Constraint<T, Vec<T>>& o) {
  // m(a) − a = log1p(t (e^−a − 1)) for a > 0, log1p((1 − t) (e^a − 1)) − a below, + m(0).
  auto positive = a > T(0);
  Vec<T> factor = positive ? all<T>(T(c.t)) : all<T>(T(1 - c.t));
  Vec<T> excess = log1p<T>(factor * exp_of_negative<T>(-magnitude<T>(a)).minus_one);
  excess = excess - (positive ? all<T>(0) : a) + T(c.at_zero);
  // Below this ‖w‖² a step is a translation in any precision.
  auto vanishing = norm <= std::sqrt(kTiny<T>);
  Vec<T> inverse = vanishing ? all<T>(0) : T(1) / (vanishing ? all<T>(1) : norm);
  Vec<T> x = a + T(c.shift);
  auto above = x > T(0);
  Vec<T> e = exp_of_negative<T>(-magnitude<T>(x)).value, share = T(1) / (T(1) + e);
  Vec<T> rest = e * share;
  o.lift[k] = vanishing ? all<T>(0) : excess / (vanishing ? all<T>(1) : norm);
  o.s[k] = (above ? x : all<T>(0)) + log1p<T>(e);
  o.log_s[k] = x;
  o.ds[k] = above ? share : rest;
  o.dlift[k] = -(above ? rest : share) * inverse;
  o.dlift_norm[k] = -o.lift[k] * inverse;
}

template <class T, class P>
struct Chain {
  ptrdiff_t K, D;
  const P *u, *w, *b;
  P* hat;
  Constraint<T, P> c;
};

template <class T>
struct Gradients {  // lane by lane, summed over the vectors of the tiles
  Vec<T> *hat, *w, *b, *s, *log_s;
};

// Walks z [D][N] along the chain; visit(k, h, v) sees tanh and its slope at every step.
template <class T, class P, int N, class Visit>
INLINE void walk(const Chain<T, P>& chain, Vec<T>* z, Visit visit) {
  const ptrdiff_t K = chain.K, D = chain.D;
  Vec<T> p[N] = {}, h[N], v[N];
  for (ptrdiff_t d = 0; d < D; ++d)
    for (int j = 0; j < N; ++j) p[j] += chain.w[d] * z[d * N + j];
  for (ptrdiff_t k = 0; k < K; ++k) {
    for (int j = 0; j < N; ++j) {
      tanh_and_slope<T>(p[j] + chain.b[k], h[j], v[j]);
      p[j] = Vec<T>{};
    }
    visit(k, h, v);
    const P *hat = chain.hat + k * D, *next = chain.w + (k + 1 < K ? k + 1 : k) * D;
    for (ptrdiff_t d = 0; d < D; ++d)
      for (int j = 0; j < N; ++j) {
        Vec<T> moved = z[d * N + j] + hat[d] * h[j];
        z[d * N + j] = moved;
        p[j] += next[d] * moved;
      }
  }
}

template <class T, class P, int N>
void push_tile(const Chain<T, P>& chain, Vec<T>* z, Vec<T>* ladj) {
  for (int j = 0; j < N; ++j) ladj[j] = Vec<T>{};
  walk<T, P, N>(chain, z, [&](ptrdiff_t k, const Vec<T>* h, const Vec<T>* v) {
    for (int j = 0; j < N; ++j) {
      Vec<T> total = h[j] * h[j] + v[j] * chain.c.s[k];
      auto lost = total < kTiny<T>;
      ladj[j] += lost ? Vec<T>{} + chain.c.log_s[k] : log_of_normal<T>(total);
    }
  });
}

// From the gradient of z′, in `grad` [D][N], and of ladj: the gradient of z, in `grad`, and the
// parameters' added to `sums`. z is walked twice, from two copies; h, v, p have room for [K][N].
template <class T, class P, int N>
void pull_tile(const Chain<T, P>& chain, Vec<T>* z, Vec<T>* again, Vec<T>* grad, const Vec<T>* grad_ladj,
               Vec<T>* h, Vec<T>* v, Vec<T>* p, const Gradients<T>* sums) {
  const ptrdiff_t K = chain.K, D = chain.D;
  walk<T, P, N>(chain, z, [&](ptrdiff_t k, const Vec<T>* hk, const Vec<T>* vk) {
    Vec<T> grad_s = Vec<T>{}, grad_log_s = Vec<T>{};
    for (int j = 0; j < N; ++j) {
      Vec<T> total = hk[j] * hk[j] + vk[j] * chain.c.s[k];
      auto lost = total < kTiny<T>;
      Vec<T> ds = lost ? Vec<T>{} : grad_ladj[j] * (vk[j] / (lost ? all<T>(1) : total));
      grad_s += ds;
      grad_log_s += lost ? grad_ladj[j] : Vec<T>{};
      h[k * N + j] = hk[j];
      v[k * N + j] = vk[j];
      p[k * N + j] = T(2) * hk[j] * (T(1) - chain.c.s[k]) * ds;
    }
    if (sums) {
      sums->s[k] += grad_s;
      sums->log_s[k] += grad_log_s;
    }
  });
  Vec<T> across[N] = {};  // û_k · ∂/∂z_k
  for (ptrdiff_t d = 0; d < D; ++d)
    for (int j = 0; j < N; ++j) across[j] += chain.hat[(K - 1) * D + d] * grad[d * N + j];
  for (ptrdiff_t k = K - 1; k >= 0; --k) {
    Vec<T> hk[N], pk[N], grad_b = Vec<T>{};
    for (int j = 0; j < N; ++j) {
      hk[j] = h[k * N + j];
      pk[j] = p[k * N + j] + v[k * N + j] * across[j];
      p[k * N + j] = pk[j];
      grad_b += pk[j];
      across[j] = Vec<T>{};
    }
    const P *w = chain.w + k * D, *before = chain.hat + (k > 0 ? k - 1 : 0) * D;
    Vec<T>* grad_hat = sums ? sums->hat + k * D : nullptr;
    if (sums) sums->b[k] += grad_b;
    for (ptrdiff_t d = 0; d < D; ++d) {
      Vec<T> sum = Vec<T>{};
      for (int j = 0; j < N; ++j) {
        Vec<T> g = grad[d * N + j];
        sum += hk[j] * g;
        g += pk[j] * w[d];
        grad[d * N + j] = g;
        across[j] += before[d] * g;
      }
      if (grad_hat) grad_hat[d] += sum;
    }
  }
  if (!sums) return;
  for (ptrdiff_t k = 0; k < K; ++k) {
    Vec<T> hk[N], pk[N];
    for (int j = 0; j < N; ++j) hk[j] = h[k * N + j], pk[j] = p[k * N + j];
    const P* hat = chain.hat + k * D;
    Vec<T>* grad_w = sums->w + k * D;
    for (ptrdiff_t d = 0; d < D; ++d) {
      Vec<T> sum = Vec<T>{};
      for (int j = 0; j < N; ++j) {
        sum += pk[j] * again[d * N + j];
        again[d * N + j] += hat[d] * hk[j];
      }
      grad_w[d] += sum;
    }
  }
}

// û for all steps.
template <class T, class P>
INLINE void lift_all(const Chain<T, P>& chain) {
  for (ptrdiff_t k = 0; k < chain.K; ++k)
    for (ptrdiff_t d = 0; d < chain.D; ++d)
      chain.hat[k * chain.D + d] = chain.u[k * chain.D + d] + chain.c.lift[k] * chain.w[k * chain.D + d];
}

// Through the constraint: gradients of û, w, s, log s → of u and w, in place of those of û and w.
template <class T, class P>
INLINE void unlift_all(const Chain<T, P>& chain, P* hat, P* w, const P* s, const P* log_s) {
  for (ptrdiff_t k = 0; k < chain.K; ++k) {
    const P *uk = chain.u + k * chain.D, *wk = chain.w + k * chain.D;
    P *grad_u = hat + k * chain.D, *grad_w = w + k * chain.D;
    P lift = P{};
    for (ptrdiff_t d = 0; d < chain.D; ++d) lift += grad_u[d] * wk[d];
    const P dot = s[k] * chain.c.ds[k] + log_s[k] + lift * chain.c.dlift[k];
    const P norm = T(2) * lift * chain.c.dlift_norm[k];
    for (ptrdiff_t d = 0; d < chain.D; ++d) {
      P through = grad_u[d];
      grad_u[d] = through + dot * wk[d];
      grad_w[d] += chain.c.lift[k] * through + dot * uk[d] + norm * wk[d];
    }
  }
}

}  // namespace varflow
