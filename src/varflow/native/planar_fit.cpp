// Many updates of planar fits to an energy in the plane, in one call: noise → z₀ → flow → log π → loss → gradients →
// clipping → Adam or RMSprop. No fit touches another. What each update is stands in varflow/native/planar_fit.py.

#include "chain.h"
#include "energies.h"

namespace {

using namespace varflow;

constexpr int kD = 2, kParts = 5, kStates = 3;
// Where s of all steps lies between these, no product of four determinants leaves the range of numbers.
constexpr double kSmall = 1e-8, kLarge = 1e8;
// Tiles whose float32 numbers are added up lane by lane; beyond that their sums are.
constexpr ptrdiff_t kTilesInSums = 16;

struct Objective {
  int annealed;  // E[log q − β log π], or β E[log q − log π − control]
  int control;
};

struct Optimizer {
  int kind;              // 0 Adam, 1 AdamW, 2 RMSprop
  double beta1, beta2;   // RMSprop: beta2 is its smoothing constant, beta1 its momentum
  double eps, weight_decay;
  int centered;
  double clip, clip_eps;  // clip ≤ 0: none; the norm is divided by itself + clip_eps
};

template <class T>
struct Call {
  ptrdiff_t F, S, K, steps;
  double shift;
  const int* energies;                  // [F]
  const T* noise;                       // [steps][fits in all][S][2], at the first fit of this call
  ptrdiff_t noise_step;
  const double *weights, *rates;        // [steps]
  ptrdiff_t taken;                      // updates before these
  Objective objective;
  Optimizer optimizer;
  T* parameters[kParts];                // u [F][K][2], w [F][K][2], b [F][K]; mean, log σ [F][2] or null
  T* states[kParts * kStates];          // of each: Adam: m, v; RMSprop: v, momentum, mean; or null
  double* rows;                         // [steps][fits in all][3]: loss, KL, ladj
  ptrdiff_t rows_step;
};

// One fit's numbers, side by side: u, w, b, mean, log σ.
template <class T>
struct Fit {
  ptrdiff_t K, size, padded;
  T *theta, *grad, *states[kStates];
  ptrdiff_t u() const { return 0; }
  ptrdiff_t w() const { return kD * K; }
  ptrdiff_t b() const { return 2 * kD * K; }
  ptrdiff_t mean() const { return (2 * kD + 1) * K; }
};

template <class T>
void move(const Call<T>& c, const Fit<T>& fit, ptrdiff_t f, bool in) {
  const ptrdiff_t sizes[kParts] = {kD * c.K, kD * c.K, c.K, kD, kD};
  ptrdiff_t at = 0;
  for (int part = 0; part < kParts; ++part) {
    const ptrdiff_t n = sizes[part];
    if (c.parameters[part]) {
      T* there = c.parameters[part] + f * n;
      std::memcpy(in ? fit.theta + at : there, in ? there : fit.theta + at, n * sizeof(T));
      for (int i = 0; i < kStates; ++i) {
        T* state = c.states[part * kStates + i];
        if (!state) continue;
        state += f * n;
        std::memcpy(in ? fit.states[i] + at : state, in ? state : fit.states[i] + at, n * sizeof(T));
      }
    }
    at += n;
  }
}

template <class T>
INLINE Vec<T> root(Vec<T> x) {
  Vec<T> out;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes<T>; ++l) out[l] = std::sqrt(x[l]);
  return out;
}

template <class T>
void update(const Optimizer& o, const Fit<T>& fit, double rate, double count) {
  constexpr int L = kLanes<T>;
  if (o.clip > 0) {
    double square = 0;
    for (ptrdiff_t i = 0; i < fit.size; ++i) square += double(fit.grad[i]) * fit.grad[i];
    const double norm = std::sqrt(square), factor = o.clip / (norm + o.clip_eps);
    // As torch clamps it: a norm that is not a number makes the gradient one that is not.
    if (!(factor >= 1))
      for (ptrdiff_t i = 0; i < fit.size; ++i) fit.grad[i] *= T(factor);
  }
  const T decay = T(o.weight_decay), eps = T(o.eps), b2 = T(o.beta2), rest2 = T(1 - o.beta2);
  const T b1 = T(o.beta1), rest1 = T(1 - o.beta1);
  const T step = T(-(rate / (1 - std::pow(o.beta1, count)))), root2 = T(std::sqrt(1 - std::pow(o.beta2, count)));
  const T shrink = T(1 - rate * o.weight_decay), minus = T(-rate);
  for (ptrdiff_t i = 0; i < fit.padded; i += L) {
    Vec<T> x = read<T>(fit.theta + i), g = read<T>(fit.grad + i);
    if (o.kind == 1) x = x * shrink;
    else if (decay != 0) g = g + x * decay;
    if (o.kind < 2) {
      Vec<T> m = read<T>(fit.states[0] + i), v = read<T>(fit.states[1] + i);
      // torch's lerp: from the nearer end.
      m = rest1 < T(0.5) ? m + rest1 * (g - m) : g + (rest1 - T(1)) * (g - m);
      v = v * b2 + rest2 * g * g;
      write<T>(fit.states[0] + i, m);
      write<T>(fit.states[1] + i, v);
      x = x + step * m / (root<T>(v) / root2 + eps);
    } else {
      Vec<T> v = read<T>(fit.states[0] + i);
      v = v * b2 + rest2 * g * g;
      write<T>(fit.states[0] + i, v);
      Vec<T> spread = v;
      if (o.centered) {
        Vec<T> m = read<T>(fit.states[2] + i);
        m = rest2 < T(0.5) ? m + rest2 * (g - m) : g + (rest2 - T(1)) * (g - m);
        write<T>(fit.states[2] + i, m);
        spread = v - m * m;
      }
      Vec<T> moved = g / (root<T>(spread) + eps);
      if (o.beta1 > 0) {
        moved = read<T>(fit.states[1] + i) * b1 + moved;
        write<T>(fit.states[1] + i, moved);
      }
      x = x + minus * moved;
    }
    write<T>(fit.theta + i, x);
  }
}

// What a tile of N vectors of points leaves behind: [K][N] each.
template <class T>
struct Path {
  Vec<T> *x, *y, *h, *v, *p;
};

#define EACH _Pragma("GCC unroll 8") for (int j = 0; j < N; ++j)

// With e = exp(−2a) for a ≥ 0: (e − 1) / 2 and e / 2, both to full relative accuracy; e is 0 below the normal numbers.
// exp_of_negative in fewer operations: the half, the −2 and the bias of the exponent are in the constants.
template <class T>
INLINE void half_exp(Vec<T> a, Vec<T>& minus_half, Vec<T>& half) {
  using S = Numbers<T>;
  constexpr T magic = S::magic + T(S::bias - 1), most = -S::lowest / 2;
  const Vec<T> near = a > most ? all<T>(most) : a;
  const Vec<T> shifted = near * T(-2 * 1.44269504088896340736) + magic, n = shifted - magic;
  const Vec<T> t = (near + n * (S::ln2_high / 2)) + n * (S::ln2_low / 2);
  const Vec<T> power = (Vec<T>)((typename S::Bits)shifted << S::mantissa);  // 2ⁿ⁻¹
  // Taylor: e^(−2t) − 1 = −2t (1 − t (1 − 2t/3 (1 − …))).
  T c[S::exp_terms + 1] = {T(-2)};
#pragma GCC unroll 16
  for (int i = 1; i <= S::exp_terms; ++i) c[i] = c[i - 1] * (T(-2) / T(i + 1));
  Vec<T> q = all<T>(c[S::exp_terms]);
#pragma GCC unroll 16
  for (int i = S::exp_terms - 1; i >= 0; --i) q = q * t + c[i];
  q = q * t;
  minus_half = power * q + (power - T(0.5));
  half = power * q + power;
}

// The chain in the plane, all numbers in their usual range: z and ladj, and what the way back needs. To grad_s goes
// the sum of ½ ∂ladj/∂s; lanes that stand for no point are 0 in `alive`.
template <class T, int N, bool full>
INLINE void go(const Chain<T, T>& chain, Vec<T>* x, Vec<T>* y, Vec<T>* ladj, const Vec<T>* alive, const Path<T>& path,
               Vec<T>* grad_s) {
  using S = Numbers<T>;
  using Bits = typename S::Bits;
  using Int = typename S::Int;
  Vec<T> product[N], p[N];
  Int exponents[N] = {};
  EACH {
    product[j] = all<T>(1);
    p[j] = chain.w[0] * x[j] + (chain.w[1] * y[j] + chain.b[0]);
  }
  for (ptrdiff_t k = 0; k < chain.K; ++k) {
    const ptrdiff_t after = k + 1 < chain.K ? k + 1 : k;
    const T s2 = 2 * chain.c.s[k], slope_h = 4 * (chain.c.s[k] - 1), hat0 = chain.hat[2 * k], hat1 = chain.hat[2 * k + 1];
    const T w0 = chain.w[2 * after], w1 = chain.w[2 * after + 1], b = chain.b[after];
    Vec<T> sum = grad_s[k];
    EACH {
      // With d = (e − 1)/2, g = e/2, A = 1 + d and B = d² + 2 g s: |tanh p| = −d / A, its slope v = 2 g / A²,
      // h² + v s = B / A², and half of ∂ladj/∂s is g / B. One division serves all.
      const Vec<T> a = magnitude<T>(p[j]);
      Vec<T> d, g;
      half_exp<T>(a, d, g);
      const Vec<T> A = d + T(1), B = d * d + g * s2, both = T(1) / (A * B), inverse = both * B, square = inverse * inverse;
      const Vec<T> h = (Vec<T>)((Bits)(-d * inverse) | ((Bits)p[j] ^ (Bits)a));
      product[j] = product[j] * (B * square);
      Vec<T> slope = both * A * g;
      if (!full) slope = slope * alive[j];
      sum += slope;
      path.x[k * N + j] = x[j];
      path.y[k * N + j] = y[j];
      path.h[k * N + j] = h;
      path.v[k * N + j] = g * square;
      path.p[k * N + j] = slope_h * h * slope;
      x[j] = x[j] + hat0 * h;
      y[j] = y[j] + hat1 * h;
      p[j] = w0 * x[j] + (w1 * y[j] + b);
    }
    grad_s[k] = sum;
    if (k % 4 == 3) EACH {
      const Bits high = (Bits)product[j] & (~typename S::Bit(0) >> 1) >> S::mantissa << S::mantissa;
      exponents[j] += (Int)(high >> S::mantissa) - S::bias;
      product[j] = product[j] * (Vec<T>)((typename S::Bit(2 * S::bias) << S::mantissa) - high);
    }
  }
  EACH ladj[j] =
      __builtin_convertvector(exponents[j], Vec<T>) * T(0.69314718055994530942) + log_of_normal<T>(product[j]);
}

// Back: from the gradient of z′ to that of z₀, with 1 for every point's −ladj; the parameters' go to `sums`.
template <class T, int N>
INLINE void come_back(const Chain<T, T>& chain, Vec<T>* gx, Vec<T>* gy, const Path<T>& path, const Gradients<T>& sums) {
  Vec<T> across[N];  // twice û·∂/∂z
  const ptrdiff_t last = chain.K - 1;
  EACH across[j] = 2 * chain.hat[2 * last] * gx[j] + 2 * chain.hat[2 * last + 1] * gy[j];
  for (ptrdiff_t k = last; k >= 0; --k) {
    const T *w = chain.w + 2 * k, *before = chain.hat + 2 * (k > 0 ? k - 1 : 0), hat0 = 2 * before[0], hat1 = 2 * before[1];
    Vec<T> u0 = sums.hat[2 * k], u1 = sums.hat[2 * k + 1], v0 = sums.w[2 * k], v1 = sums.w[2 * k + 1], b = sums.b[k];
    EACH {
      const Vec<T> h = path.h[k * N + j], pk = path.p[k * N + j] + path.v[k * N + j] * across[j];
      b += pk;
      u0 += h * gx[j];
      u1 += h * gy[j];
      v0 += pk * path.x[k * N + j];
      v1 += pk * path.y[k * N + j];
      gx[j] += pk * w[0];
      gy[j] += pk * w[1];
      across[j] = hat0 * gx[j] + hat1 * gy[j];
    }
    sums.hat[2 * k] = u0, sums.hat[2 * k + 1] = u1, sums.w[2 * k] = v0, sums.w[2 * k + 1] = v1, sums.b[k] = b;
  }
}

// Means over the points of a fit, in float64: a long sum of float32 would lose its last points.
struct Means {
  double ladj = 0, square = 0, log_p = 0, control = 0;
};

template <class T>
double total(Vec<T> x) {
  double sum = 0;
  for (int l = 0; l < kLanes<T>; ++l) sum += x[l];
  return sum;
}

template <class T>
struct Room {
  Chain<T, T> chain;
  Gradients<T> sums;
  Path<T> path;
  T *dot, *norm, *grad_s, *grad_log_s, *partial;
  Vec<T> *z, *again, *grad, *h, *v, *p;  // of a chain out of the usual range
};

template <class T>
struct Base {
  T mean[kD], scale[kD];
};

// At most N vectors of points at `noise`: through the flow, the energy and back. Gradients are those of
// Σ (log q − β log π), or of Σ (log q − log π − control); that of z₀ goes to base_sums [mean ×2, log σ ×2]. A tile is
// never narrower: fewer vectors would wait for each other as long.
template <class T, int N, bool full>
void tile(const Call<T>& c, const Room<T>& room, const Base<T>& base, int energy, bool usual, const T* noise,
          ptrdiff_t points, T tempered, Means& means, Vec<T>* base_sums) {
  constexpr int L = kLanes<T>;
  Vec<T> x0[N], y0[N], x[N], y[N], e0[N], e1[N], alive[N], ladj[N], gx[N], gy[N];
  EACH {
    const T* from = noise + j * kD * L;
    T padded[kD * L];
    alive[j] = all<T>(1);
    if (!full && points < (j + 1) * L) {
      const ptrdiff_t lanes = points > j * L ? points - j * L : 0;
      std::memset(padded, 0, sizeof padded);
      if (lanes) std::memcpy(padded, from, lanes * kD * sizeof(T));
      from = padded;
      for (ptrdiff_t l = lanes; l < L; ++l) alive[j][l] = 0;
    }
    apart<T>(read<T>(from), read<T>(from + L), e0[j], e1[j]);
    x[j] = x0[j] = base.mean[0] + base.scale[0] * e0[j];
    y[j] = y0[j] = base.mean[1] + base.scale[1] * e1[j];
  }
  if (usual) {
    go<T, N, full>(room.chain, x, y, ladj, alive, room.path, room.sums.s);
  } else {
    EACH room.z[j] = x[j], room.z[N + j] = y[j];
    push_tile<T, T, N>(room.chain, room.z, ladj);
    EACH x[j] = room.z[j], y[j] = room.z[N + j];
  }
  Vec<T> sum_ladj = Vec<T>{}, sum_square = Vec<T>{}, sum_p = Vec<T>{}, sum_control = Vec<T>{};
  for (int j = 0; j < N; ++j) {
    Vec<T> log_p, dx, dy;
    log_prob<T>(energy, x[j], y[j], log_p, dx, dy);
    gx[j] = -(alive[j] * tempered) * dx;
    gy[j] = -(alive[j] * tempered) * dy;
    const Vec<T> square = e0[j] * e0[j] + e1[j] * e1[j];
    sum_ladj += alive[j] * ladj[j];
    sum_square += alive[j] * square;
    sum_p += alive[j] * log_p;
    if (c.objective.control) sum_control += alive[j] * (x0[j] * x0[j] + y0[j] * y0[j] - square);
  }
  means.ladj += total<T>(sum_ladj), means.square += total<T>(sum_square);
  means.log_p += total<T>(sum_p), means.control += total<T>(sum_control);
  if (usual) {
    come_back<T, N>(room.chain, gx, gy, room.path, room.sums);
  } else {
    Vec<T> of_ladj[N];
    EACH {
      of_ladj[j] = -alive[j];
      room.z[j] = room.again[j] = x0[j], room.z[N + j] = room.again[N + j] = y0[j];
      room.grad[j] = gx[j], room.grad[N + j] = gy[j];
    }
    pull_tile<T, T, N>(room.chain, room.z, room.again, room.grad, of_ladj, room.h, room.v, room.p, &room.sums);
    EACH gx[j] = room.grad[j], gy[j] = room.grad[N + j];
  }
  EACH {
    if (c.objective.control) {
      gx[j] -= alive[j] * x0[j];
      gy[j] -= alive[j] * y0[j];
    }
    base_sums[0] += gx[j];
    base_sums[1] += gy[j];
    base_sums[2] += gx[j] * e0[j];
    base_sums[3] += gy[j] * e1[j];
  }
}

template <class T>
void clear(const Gradients<T>& sums, ptrdiff_t K) {
  for (Vec<T>* x : {sums.hat, sums.w}) std::memset(x, 0, kD * K * sizeof(Vec<T>));
  for (Vec<T>* x : {sums.b, sums.s, sums.log_s}) std::memset(x, 0, K * sizeof(Vec<T>));
}

template <class T>
INLINE void add(const Vec<T>* from, T* to, T* room, ptrdiff_t n) {
  sum_lanes<T>(from, room, n);
  for (ptrdiff_t i = 0; i < n; ++i) to[i] += room[i];
}

// The loss of an update and its gradient; the row says what it was.
template <class T>
void descend(const Call<T>& c, const Fit<T>& fit, const Room<T>& room, int energy, const T* noise, double beta,
             double* row) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t K = c.K, at_mean = fit.mean();
  Chain<T, T> chain = room.chain;
  for (ptrdiff_t k = 0; k < K; ++k) {
    const T *u = chain.u + kD * k, *w = chain.w + kD * k;
    room.dot[k] = u[0] * w[0] + u[1] * w[1];
    room.norm[k] = w[0] * w[0] + w[1] * w[1];
  }
  const Shift shift(c.shift);
  const ptrdiff_t vectors = (K + L - 1) / L;
  Constraint<T, Vec<T>> wide{(Vec<T>*)chain.c.lift, (Vec<T>*)chain.c.s,     (Vec<T>*)chain.c.log_s,
                             (Vec<T>*)chain.c.ds,   (Vec<T>*)chain.c.dlift, (Vec<T>*)chain.c.dlift_norm};
  for (ptrdiff_t k = 0; k < vectors; ++k)
    constrain<T>(read<T>(room.dot + k * L), read<T>(room.norm + k * L), shift, int(k), wide);
  lift_all<T, T>(chain);
  bool usual = true;
  for (ptrdiff_t k = 0; k < K; ++k) usual &= chain.c.s[k] > T(kSmall) && chain.c.s[k] < T(kLarge);
  Base<T> base{{0, 0}, {1, 1}};
  const bool learned = c.parameters[3];
  for (int d = 0; learned && d < kD; ++d) {
    base.mean[d] = fit.theta[at_mean + d];
    base.scale[d] = std::exp(fit.theta[at_mean + kD + d]);
  }
  // Of an ELBO β weighs the whole.
  const double whole = c.objective.annealed ? 1 : beta;
  const T tempered = T(c.objective.annealed ? beta : 1);
  Means means;
  std::memset(fit.grad, 0, fit.padded * sizeof(T));
  for (ptrdiff_t k = 0; k < K; ++k) room.grad_s[k] = room.grad_log_s[k] = 0;
  for (ptrdiff_t r = 0; r < c.S;) {
    // Sums of float32 over so many points at most.
    const ptrdiff_t until = r + kTilesInSums * kWide * L < c.S ? r + kTilesInSums * kWide * L : c.S;
    clear<T>(room.sums, K);
    Vec<T> base_sums[2 * kD] = {};
    for (; r < until; r += kWide * L) {
      auto run = until - r < kWide * L ? tile<T, kWide, false> : tile<T, kWide, true>;
      run(c, room, base, energy, usual, noise + r * kD, until - r, tempered, means, base_sums);
    }
    add<T>(room.sums.hat, fit.grad + fit.u(), room.partial, kD * K);
    add<T>(room.sums.w, fit.grad + fit.w(), room.partial, kD * K);
    add<T>(room.sums.b, fit.grad + fit.b(), room.partial, K);
    if (usual)
      for (ptrdiff_t k = 0; k < K; ++k) room.sums.s[k] *= T(-2);
    add<T>(room.sums.s, room.grad_s, room.partial, K);
    if (!usual) add<T>(room.sums.log_s, room.grad_log_s, room.partial, K);
    for (int i = 0; learned && i < 2 * kD; ++i) fit.grad[at_mean + i] += T(total<T>(base_sums[i]));
  }
  unlift_all<T, T>(chain, fit.grad + fit.u(), fit.grad + fit.w(), room.grad_s, room.grad_log_s);
  const T each = T(whole / double(c.S));
  for (ptrdiff_t i = 0; i < fit.size; ++i) fit.grad[i] *= each;
  double log_scales = 0, expected = 0;
  for (int d = 0; d < kD; ++d) {
    const double m = base.mean[d], s = base.scale[d];
    if (learned) {
      T *of_mean = fit.grad + at_mean + d, *of_scale = of_mean + kD;
      const T control = c.objective.control ? T(beta) : T(0);
      *of_scale = *of_scale * base.scale[d] - T(whole) + control * base.scale[d] * base.scale[d];
      *of_mean += control * base.mean[d];
      log_scales += fit.theta[at_mean + kD + d];
    }
    expected += m * m + s * s - 1;
  }
  const double n = double(c.S), ladj = means.ladj / n, log_p = means.log_p / n;
  const double log_q = -0.5 * means.square / n - 1.8378770664093454836 - log_scales - ladj;
  const double control = c.objective.control ? 0.5 * (means.control / n - expected) : 0;
  row[0] = c.objective.annealed ? log_q - beta * log_p : beta * (log_q - log_p - control);
  row[1] = log_q - log_p;
  row[2] = ladj;
}

template <class T>
int run(const Call<T>& c) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t K = c.K, padded_K = (K + L - 1) / L * L;
  Fit<T> fit;
  fit.K = K;
  fit.size = (2 * kD + 1) * K + (c.parameters[3] ? 2 * kD : 0);
  fit.padded = ((2 * kD + 1) * K + 2 * kD + L - 1) / L * L;
  const ptrdiff_t vectors =
      (2 + kStates) * (fit.padded / L + 1) + 16 * (padded_K + 1) + kD * K + (2 * kD + 3) * K + kWide * (8 * K + 3 * kD);
  if (!arena.reserve(vectors * sizeof(Vec<T>) + 64 * 64)) return 1;
  fit.theta = arena.take<T>(fit.padded);
  fit.grad = arena.take<T>(fit.padded);
  for (T*& state : fit.states) state = arena.take<T>(fit.padded);
  Room<T> room;
  room.chain = {K, kD, fit.theta + fit.u(), fit.theta + fit.w(), fit.theta + fit.b(), arena.take<T>(kD * K), {}};
  auto& constraint = room.chain.c;
  for (T** x : {&constraint.lift, &constraint.s, &constraint.log_s, &constraint.ds, &constraint.dlift,
                &constraint.dlift_norm, &room.dot, &room.norm, &room.grad_s, &room.grad_log_s})
    *x = arena.take<T>(padded_K);
  room.partial = arena.take<T>(kD * padded_K);
  room.sums = {arena.take<Vec<T>>(kD * K), arena.take<Vec<T>>(kD * K), arena.take<Vec<T>>(K), arena.take<Vec<T>>(K),
               arena.take<Vec<T>>(K)};
  room.path = {arena.take<Vec<T>>(K * kWide), arena.take<Vec<T>>(K * kWide), arena.take<Vec<T>>(K * kWide),
               arena.take<Vec<T>>(K * kWide), arena.take<Vec<T>>(K * kWide)};
  for (Vec<T>** x : {&room.z, &room.again, &room.grad}) *x = arena.take<Vec<T>>(kD * kWide);
  for (Vec<T>** x : {&room.h, &room.v, &room.p}) *x = arena.take<Vec<T>>(K * kWide);
  for (ptrdiff_t k = 0; k < padded_K; ++k) room.dot[k] = room.norm[k] = 0;
  for (ptrdiff_t f = 0; f < c.F; ++f) {
    for (T* x : {fit.theta, fit.grad, fit.states[0], fit.states[1], fit.states[2]})
      std::memset(x, 0, fit.padded * sizeof(T));
    move<T>(c, fit, f, true);
    for (ptrdiff_t step = 0; step < c.steps; ++step) {
      descend<T>(c, fit, room, c.energies[f], c.noise + step * c.noise_step + f * c.S * kD, c.weights[step],
                 c.rows + step * c.rows_step + f * 3);
      update<T>(c.optimizer, fit, c.rates[step], double(c.taken + step + 1));
    }
    move<T>(c, fit, f, false);
  }
  return 0;
}

}  // namespace

#define DEFINE(T, suffix)                                                                                         \
  extern "C" __attribute__((visibility("default"))) int planar_fit_##suffix(                                      \
      ptrdiff_t F, ptrdiff_t S, ptrdiff_t K, ptrdiff_t steps, double shift, const int* energies, const T* noise,  \
      ptrdiff_t noise_step, const double* weights, const double* rates, ptrdiff_t taken, int annealed,            \
      int control, int kind, double beta1, double beta2, double eps, double weight_decay, int centered,           \
      double clip, double clip_eps, T* const* parameters, T* const* states, double* rows, ptrdiff_t rows_step) {  \
    Call<T> c{F, S, K, steps, shift, energies, noise, noise_step, weights, rates, taken, {annealed, control},     \
              {kind, beta1, beta2, eps, weight_decay, centered, clip, clip_eps}, {}, {}, rows, rows_step};        \
    for (int i = 0; i < kParts; ++i) c.parameters[i] = parameters[i];                                             \
    for (int i = 0; i < kParts * kStates; ++i) c.states[i] = states[i];                                           \
    return run<T>(c);                                                                                             \
  }

DEFINE(float, f32)
DEFINE(double, f64)
