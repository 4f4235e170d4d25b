// Planar chains, forward and backward, each in one call: layouts, tiles, sums. The mathematics is in chain.h.

#include "chain.h"

namespace {

using namespace varflow;

template <class T>
struct Call {
  ptrdiff_t G, R, K, D;  // sets, points a set, steps, features
  bool packed;           // u, w, b of a set side by side, and z [R][G][D]; else z [G][R][D]
  Shift shift;
  const T *z, *u, *w, *b;
  T *out, *ladj;                                          // forward; out: also the gradient of z
  const T *grad_out, *grad_ladj;                          // backward
  T *grad_u, *grad_w, *grad_b;                            // backward; null: not wanted
  ptrdiff_t set_z, point_z, set_ladj, point_ladj;         // strides
  ptrdiff_t set_vectors, set_b;
};

template <class T, class P>
Chain<T, P> chain_from_arena(const Call<T>& c, ptrdiff_t K) {
  Chain<T, P> chain{c.K, c.D, nullptr, nullptr, nullptr, arena.take<P>(c.K * c.D), {}};
  for (P** x : {&chain.c.lift, &chain.c.s, &chain.c.log_s, &chain.c.ds, &chain.c.dlift, &chain.c.dlift_norm})
    *x = arena.take<P>(K);
  return chain;
}

template <class T>
Gradients<T> gradients_from_arena(const Call<T>& c) {
  return {arena.take<Vec<T>>(c.K * c.D), arena.take<Vec<T>>(c.K * c.D), arena.take<Vec<T>>(c.K),
          arena.take<Vec<T>>(c.K), arena.take<Vec<T>>(c.K)};
}

template <class T>
struct Tile {
  Vec<T> *z, *again, *grad, *h, *v, *p;
  explicit Tile(const Call<T>& c)
      : z(arena.take<Vec<T>>(c.D * kWide)), again(arena.take<Vec<T>>(c.D * kWide)),
        grad(arena.take<Vec<T>>(c.D * kWide)), h(arena.take<Vec<T>>(c.K * kWide)),
        v(arena.take<Vec<T>>(c.K * kWide)), p(arena.take<Vec<T>>(c.K * kWide)) {}
};

// One tile of N vectors. Vector j starts at z + j · z_step; its lanes are z_lane apart.
template <class T, class P, int N, bool back>
void run_tile(const Call<T>& c, const Chain<T, P>& chain, const Tile<T>& tile, const Gradients<T>* sums,
              ptrdiff_t z, ptrdiff_t z_step, ptrdiff_t z_lane, ptrdiff_t ladj, ptrdiff_t ladj_step,
              ptrdiff_t ladj_lane, const int* lanes) {
  Vec<T> of_ladj[N];
  for (int j = 0; j < N; ++j) gather<T>(c.z + z + j * z_step, z_lane, lanes[j], c.D, tile.z + j, N);
  if (!back) {
    push_tile<T, P, N>(chain, tile.z, of_ladj);
    for (int j = 0; j < N; ++j) {
      scatter<T>(tile.z + j, N, c.out + z + j * z_step, z_lane, lanes[j], c.D);
      for (int l = 0; l < lanes[j]; ++l) c.ladj[ladj + j * ladj_step + l * ladj_lane] = of_ladj[j][l];
    }
    return;
  }
  std::memcpy(tile.again, tile.z, c.D * N * sizeof(Vec<T>));
  for (int j = 0; j < N; ++j) {
    gather<T>(c.grad_out + z + j * z_step, z_lane, lanes[j], c.D, tile.grad + j, N);
    of_ladj[j] = Vec<T>{};
    for (int l = 0; l < lanes[j]; ++l) of_ladj[j][l] = c.grad_ladj[ladj + j * ladj_step + l * ladj_lane];
    // Lanes that stand for no point must not count.
    for (ptrdiff_t d = 0; d < c.D && lanes[j] < kLanes<T>; ++d)
      for (int l = lanes[j]; l < kLanes<T>; ++l) tile.grad[d * N + j][l] = 0;
  }
  pull_tile<T, P, N>(chain, tile.z, tile.again, tile.grad, of_ladj, tile.h, tile.v, tile.p, sums);
  for (int j = 0; j < N; ++j) scatter<T>(tile.grad + j, N, c.out + z + j * z_step, z_lane, lanes[j], c.D);
}

template <class T>
INLINE void clear(const Gradients<T>& sums, ptrdiff_t K, ptrdiff_t D) {
  std::memset(sums.hat, 0, K * D * sizeof(Vec<T>));
  std::memset(sums.w, 0, K * D * sizeof(Vec<T>));
  for (Vec<T>* x : {sums.b, sums.s, sums.log_s}) std::memset(x, 0, K * sizeof(Vec<T>));
}

// Lanes are points.
template <class T, bool back>
void over_points(const Call<T>& c) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t padded = (c.K + L - 1) / L * L;
  Chain<T, T> chain = chain_from_arena<T, T>(c, padded);
  T *dot = arena.take<T>(padded), *norm = arena.take<T>(padded);
  T *grad_s = arena.take<T>(c.K), *grad_log_s = arena.take<T>(c.K);
  Gradients<T> sums = gradients_from_arena<T>(c);
  Tile<T> tile(c);
  const bool wanted = back && c.grad_u;
  for (ptrdiff_t g = 0; g < c.G; ++g) {
    chain.u = c.u + g * c.set_vectors;
    chain.w = c.w + g * c.set_vectors;
    chain.b = c.b + g * c.set_b;
    for (ptrdiff_t k = 0; k < padded; ++k) {
      dot[k] = norm[k] = 0;
      if (k >= c.K) continue;
      const T *u = chain.u + k * c.D, *w = chain.w + k * c.D;
      Vec<T> dots = Vec<T>{}, norms = Vec<T>{};
      ptrdiff_t d = 0;
      for (; d + L <= c.D; d += L) {
        Vec<T> x = read<T>(w + d);
        dots += read<T>(u + d) * x;
        norms += x * x;
      }
      for (; d < c.D; ++d) dot[k] += u[d] * w[d], norm[k] += w[d] * w[d];
      if (c.D >= L)
        for (int l = 0; l < L; ++l) dot[k] += dots[l], norm[k] += norms[l];
    }
    Constraint<T, Vec<T>> wide{(Vec<T>*)chain.c.lift, (Vec<T>*)chain.c.s,     (Vec<T>*)chain.c.log_s,
                               (Vec<T>*)chain.c.ds,   (Vec<T>*)chain.c.dlift, (Vec<T>*)chain.c.dlift_norm};
    for (ptrdiff_t k = 0; k < padded; k += L)
      constrain<T>(read<T>(dot + k), read<T>(norm + k), c.shift, int(k / L), wide);
    lift_all<T, T>(chain);
    if (wanted) clear<T>(sums, c.K, c.D);
    for (ptrdiff_t r = 0; r < c.R;) {
      int lanes[kWide];
      for (int j = 0; j < kWide; ++j) {
        ptrdiff_t left = c.R - r - j * L;
        lanes[j] = int(left < L ? left : L);
      }
      ptrdiff_t z = g * c.set_z + r * c.point_z, ladj = g * c.set_ladj + r * c.point_ladj;
      if (lanes[kWide - 1] > 0) {
        run_tile<T, T, kWide, back>(c, chain, tile, wanted ? &sums : nullptr, z, L * c.point_z, c.point_z, ladj,
                                    L * c.point_ladj, c.point_ladj, lanes);
        r += kWide * L;
      } else {
        run_tile<T, T, 1, back>(c, chain, tile, wanted ? &sums : nullptr, z, 0, c.point_z, ladj, 0,
                                c.point_ladj, lanes);
        r += L;
      }
    }
    if (!wanted) continue;
    T *grad_u = c.grad_u + g * c.set_vectors, *grad_w = c.grad_w + g * c.set_vectors;
    sum_lanes<T>(sums.hat, grad_u, c.K * c.D);
    sum_lanes<T>(sums.w, grad_w, c.K * c.D);
    sum_lanes<T>(sums.b, c.grad_b + g * c.set_b, c.K);
    sum_lanes<T>(sums.s, grad_s, c.K);
    sum_lanes<T>(sums.log_s, grad_log_s, c.K);
    unlift_all<T, T>(chain, grad_u, grad_w, grad_s, grad_log_s);
  }
}

// Lanes are parameter sets.
template <class T, bool back>
void over_sets(const Call<T>& c) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t size = c.K * c.D;
  Chain<T, Vec<T>> chain = chain_from_arena<T, Vec<T>>(c, c.K);
  Vec<T> *u = arena.take<Vec<T>>(size), *w = arena.take<Vec<T>>(size), *b = arena.take<Vec<T>>(c.K);
  chain.u = u, chain.w = w, chain.b = b;
  Gradients<T> sums = gradients_from_arena<T>(c);
  Tile<T> tile(c);
  const bool wanted = back && c.grad_u;
  for (ptrdiff_t g = 0; g < c.G; g += L) {
    const int lanes = int(c.G - g < L ? c.G - g : L);
    const int all_lanes[kWide] = {lanes, lanes, lanes, lanes};
    gather<T>(c.u + g * c.set_vectors, c.set_vectors, lanes, size, u, 1);
    gather<T>(c.w + g * c.set_vectors, c.set_vectors, lanes, size, w, 1);
    gather<T>(c.b + g * c.set_b, c.set_b, lanes, c.K, b, 1);
    for (ptrdiff_t k = 0; k < c.K; ++k) {
      Vec<T> dot = Vec<T>{}, norm = Vec<T>{};
      for (ptrdiff_t d = k * c.D; d < (k + 1) * c.D; ++d) dot += u[d] * w[d], norm += w[d] * w[d];
      constrain<T>(dot, norm, c.shift, int(k), chain.c);
    }
    lift_all<T, Vec<T>>(chain);
    if (wanted) clear<T>(sums, c.K, c.D);
    for (ptrdiff_t r = 0; r < c.R;) {
      ptrdiff_t z = g * c.set_z + r * c.point_z, ladj = g * c.set_ladj + r * c.point_ladj;
      if (r + kWide <= c.R) {
        run_tile<T, Vec<T>, kWide, back>(c, chain, tile, wanted ? &sums : nullptr, z, c.point_z, c.set_z, ladj,
                                         c.point_ladj, c.set_ladj, all_lanes);
        r += kWide;
      } else {
        run_tile<T, Vec<T>, 1, back>(c, chain, tile, wanted ? &sums : nullptr, z, 0, c.set_z, ladj, 0,
                                     c.set_ladj, all_lanes);
        r += 1;
      }
    }
    if (!wanted) continue;
    unlift_all<T, Vec<T>>(chain, sums.hat, sums.w, sums.s, sums.log_s);
    scatter<T>(sums.hat, 1, c.grad_u + g * c.set_vectors, c.set_vectors, lanes, size);
    scatter<T>(sums.w, 1, c.grad_w + g * c.set_vectors, c.set_vectors, lanes, size);
    scatter<T>(sums.b, 1, c.grad_b + g * c.set_b, c.set_b, lanes, c.K);
  }
}

template <class T, bool back>
int run(Call<T> c) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t size = c.K * c.D;
  if (c.packed) {
    c.w = c.u + size, c.b = c.u + 2 * size;
    if (back && c.grad_u) c.grad_w = c.grad_u + size, c.grad_b = c.grad_u + 2 * size;
    c.set_vectors = c.set_b = 2 * size + c.K;
    c.set_z = c.D, c.point_z = c.G * c.D, c.set_ladj = 1, c.point_ladj = c.G;
  } else {
    c.set_vectors = size, c.set_b = c.K;
    c.set_z = c.R * c.D, c.point_z = c.D, c.set_ladj = c.R, c.point_ladj = 1;
  }
  const ptrdiff_t vectors = 5 * size + 16 * (c.K + L) + kWide * 3 * (c.D + c.K);
  if (!arena.reserve(vectors * sizeof(Vec<T>) + 64 * 64)) return 1;
  if (c.G > 1 && (c.G + L - 1) / L * c.R < c.G * ((c.R + L - 1) / L))
    over_sets<T, back>(c);
  else
    over_points<T, back>(c);
  return 0;
}

}  // namespace

#define DEFINE(T, suffix)                                                                                  \
  extern "C" __attribute__((visibility("default"))) int planar_push_##suffix(                              \
      ptrdiff_t G, ptrdiff_t R, ptrdiff_t K, ptrdiff_t D, int packed, double shift, const T* z,            \
      const T* u, const T* w, const T* b, T* out, T* ladj) {                                               \
    return run<T, false>({G, R, K, D, packed != 0, Shift(shift), z, u, w, b, out, ladj, nullptr, nullptr,  \
                          nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, 0});                                   \
  }                                                                                                        \
  extern "C" __attribute__((visibility("default"))) int planar_back_##suffix(                              \
      ptrdiff_t G, ptrdiff_t R, ptrdiff_t K, ptrdiff_t D, int packed, double shift, const T* z,            \
      const T* u, const T* w, const T* b, const T* grad_out, const T* grad_ladj, T* grad_z, T* grad_u,     \
      T* grad_w, T* grad_b) {                                                                              \
    return run<T, true>({G, R, K, D, packed != 0, Shift(shift), z, u, w, b, grad_z, nullptr, grad_out,     \
                         grad_ladj, grad_u, grad_w, grad_b, 0, 0, 0, 0, 0, 0});                            \
  }

DEFINE(float, f32)
DEFINE(double, f64)
