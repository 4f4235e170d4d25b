// An affine autoregressive step, one feature after the other, each hidden unit computed once.
//
//     (aᵢ, bᵢ) = MADE(y₍<i₎),   sᵢ = B tanh(aᵢ / B),   yᵢ = xᵢ exp(sᵢ) + bᵢ   or, to solve it,   (xᵢ − bᵢ) exp(−sᵢ)
//
// Lanes are points. Units of a layer stand in the order of their degrees, so that what a unit sees is the
// beginning of the layer below, and its product is as short as what is known.

#include "vector.h"

namespace {

using namespace varflow;

constexpr int kTile = 4;   // vectors of points that share the reading of a weight
constexpr int kRows = 4;   // units that share the reading of what is known
constexpr ptrdiff_t kMost = 64;

template <class T>
struct Step {
  ptrdiff_t R, D, H;        // points, features, hidden layers
  bool reverse, solve;
  T bound;
  const ptrdiff_t *widths;  // [H]
  const ptrdiff_t *counts;  // [H][D]: units of each degree
  const T *const *weights;  // [H + 1], each [units][units below]; the last [2][D][units]
  const T *const *biases;   // [H + 1]
  bool own_bias;            // the first bias is [R][units]
  const T *x;               // [R][D]
  T *y, *sum;               // [R][D], [R]: Σ s
};

// OUT units: their bias and the products with the first n of what is below; `below` is [units][N].
template <class T, int N, int OUT>
INLINE void products(const T* weight, ptrdiff_t stride, ptrdiff_t n, const Vec<T>* below, Vec<T> (*acc)[N]) {
  for (ptrdiff_t k = 0; k < n; ++k) {
    Vec<T> v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) v[j] = below[k * N + j];
#pragma GCC unroll 4
    for (int o = 0; o < OUT; ++o) {
      Vec<T> w = all<T>(weight[o * stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[o][j] += w * v[j];
    }
  }
}

template <class T, int N, int OUT>
INLINE void rectified(const T* weight, ptrdiff_t stride, ptrdiff_t n, const Vec<T>* below, const T* bias,
                      const Vec<T>* own, Vec<T>* to) {
  Vec<T> acc[OUT][N];
  for (int o = 0; o < OUT; ++o)
    for (int j = 0; j < N; ++j) acc[o][j] = own ? own[o * N + j] : all<T>(bias[o]);
  products<T, N, OUT>(weight, stride, n, below, acc);
  for (int o = 0; o < OUT; ++o)
    for (int j = 0; j < N; ++j) {
      // A comparison with NaN is false: NaN stays.
      Vec<T> a = acc[o][j];
      to[o * N + j] = a < T(0) ? Vec<T>{} : a;
    }
}

// exp s for |s| far below the largest exponent.
template <class T>
INLINE Vec<T> exp_of(Vec<T> s) {
  Vec<T> e = exp_of_negative<T>(-magnitude<T>(s)).value;
  return s > T(0) ? T(1) / e : e;
}

template <class T>
struct Memory {
  Vec<T>* known[kMost];  // the features in the order of their degrees, then each hidden layer: [units][N]
  Vec<T>*z, *own;        // [D][N] x, then y; [units][N]
};

template <class T, int N>
void run_tile(const Step<T>& c, const Memory<T>& m, ptrdiff_t r, const int* lanes) {
  constexpr int L = kLanes<T>;
  for (int j = 0; j < N; ++j) {
    gather<T>(c.x + (r + j * L) * c.D, c.D, lanes[j], c.D, m.z + j, N);
    if (c.own_bias)
      gather<T>(c.biases[0] + (r + j * L) * c.widths[0], c.widths[0], lanes[j], c.widths[0], m.own + j, N);
  }
  ptrdiff_t filled[kMost] = {};
  Vec<T> total[N] = {};
  for (ptrdiff_t d = 0; d < c.D; ++d) {
    ptrdiff_t below = d, width = c.D;
    for (ptrdiff_t h = 0; h < c.H; ++h) {
      const ptrdiff_t stop = filled[h] + c.counts[h * c.D + d];
      ptrdiff_t u = filled[h];
      const Vec<T>* own = c.own_bias && h == 0 ? m.own : nullptr;
      for (; u + kRows <= stop; u += kRows)
        rectified<T, N, kRows>(c.weights[h] + u * width, width, below, m.known[h], c.biases[h] + (own ? 0 : u),
                               own ? own + u * N : nullptr, m.known[h + 1] + u * N);
      for (; u < stop; ++u)
        rectified<T, N, 1>(c.weights[h] + u * width, width, below, m.known[h], c.biases[h] + (own ? 0 : u),
                           own ? own + u * N : nullptr, m.known[h + 1] + u * N);
      filled[h] = below = stop;
      width = c.widths[h];
    }
    Vec<T> raw[2][N];
    for (int o = 0; o < 2; ++o)
      for (int j = 0; j < N; ++j) raw[o][j] = all<T>(c.biases[c.H][o * c.D + d]);
    products<T, N, 2>(c.weights[c.H] + d * width, c.D * width, below, m.known[c.H], raw);
    Vec<T>* z = m.z + (c.reverse ? c.D - 1 - d : d) * N;
    for (int j = 0; j < N; ++j) {
      Vec<T> s, slope;
      tanh_and_slope<T>(raw[0][j] / c.bound, s, slope);
      s *= c.bound;
      z[j] = c.solve ? (z[j] - raw[1][j]) * exp_of<T>(-s) : z[j] * exp_of<T>(s) + raw[1][j];
      m.known[0][d * N + j] = z[j];
      total[j] += s;
    }
  }
  for (int j = 0; j < N; ++j) {
    scatter<T>(m.z + j, N, c.y + (r + j * L) * c.D, c.D, lanes[j], c.D);
    for (int l = 0; l < lanes[j]; ++l) c.sum[r + j * L + l] = total[j][l];
  }
}

template <class T>
int run(const Step<T>& c) {
  constexpr int L = kLanes<T>;
  if (c.H + 1 > kMost) return 2;
  ptrdiff_t units = 2 * c.D + (c.own_bias ? c.widths[0] : 0);
  for (ptrdiff_t h = 0; h < c.H; ++h) units += c.widths[h];
  if (!arena.reserve(units * kTile * sizeof(Vec<T>) + (c.H + 3) * 64)) return 1;
  Memory<T> m;
  m.z = arena.take<Vec<T>>(c.D * kTile);
  m.known[0] = arena.take<Vec<T>>(c.D * kTile);
  for (ptrdiff_t h = 0; h < c.H; ++h) m.known[h + 1] = arena.take<Vec<T>>(c.widths[h] * kTile);
  m.own = c.own_bias ? arena.take<Vec<T>>(c.widths[0] * kTile) : nullptr;
  for (ptrdiff_t r = 0; r < c.R;) {
    int lanes[kTile];
    for (int j = 0; j < kTile; ++j) {
      const ptrdiff_t left = c.R - r - j * L;
      lanes[j] = int(left < L ? left : L);
    }
    if (lanes[kTile - 1] > 0)
      run_tile<T, kTile>(c, m, r, lanes), r += kTile * L;
    else
      run_tile<T, 1>(c, m, r, lanes), r += L;
  }
  return 0;
}

}  // namespace

#define DEFINE(T, suffix)                                                                                     \
  extern "C" __attribute__((visibility("default"))) int made_affine_##suffix(                                 \
      ptrdiff_t R, ptrdiff_t D, ptrdiff_t H, int reverse, int solve, int own_bias, double bound,              \
      const ptrdiff_t* widths, const ptrdiff_t* counts, const T* const* weights, const T* const* biases,      \
      const T* x, T* y, T* sum) {                                                                             \
    return run<T>({R, D, H, reverse != 0, solve != 0, T(bound), widths, counts, weights, biases,              \
                   own_bias != 0, x, y, sum});                                                                \
  }

DEFINE(float, f32)
DEFINE(double, f64)
