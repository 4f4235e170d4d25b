// The Bernoulli log-likelihood of rows of logits, and its gradient: sums over elements.
//
//     Σ x l − softplus(l) = Σ (x − [l > 0]) l − log1p(e),   x − σ(l) = x − [l > 0] ± e / (1 + e),   e = exp −|l|
//
// Nothing cancels for x of 0 and 1: both keep their relative accuracy where the logits are far from 0.
// Logarithms are added before they are taken, log1p(a) + log1p(b) = log1p(a + b + ab), where all terms are
// positive: one logarithm for kBlock vectors, as accurate as their sum.

#include "vector.h"

namespace {

using namespace varflow;

constexpr int kBlock = 8;  // 1 + e ≤ 2, so that the product stays below 2^kBlock

typedef double Doubles __attribute__((vector_size(kLanes<float> * sizeof(double))));

INLINE Doubles widen(Vec<float> x) { return __builtin_convertvector(x, Doubles); }
INLINE Vec<double> widen(Vec<double> x) { return x; }

// log(1 + y) for y ≥ 0.
template <class T>
INLINE Vec<T> log1p_of_positive(Vec<T> y) {
  return y < T(0.41421356) ? log1p_near<T>(y) : log_of_normal<T>(y + T(1));
}

template <class T>
struct Element {
  Vec<T> left, e;  // x − [l > 0], exp −|l|
  INLINE Element(Vec<T> x, Vec<T> l)
      : left(x - (l > T(0) ? all<T>(1) : all<T>(0))), e(exp_of_negative<T>(-magnitude<T>(l)).value) {}
  INLINE Vec<T> slope(Vec<T> l) const {
    Vec<T> share = e / (T(1) + e);
    return left + (l > T(0) ? share : -share);
  }
};

// The last elements of a row; those beyond it add nothing.
template <class T>
INLINE void read_rest(const T* x, const T* l, ptrdiff_t n, Vec<T>& xs, Vec<T>& ls) {
  xs = Vec<T>{}, ls = all<T>(2 * Numbers<T>::lowest);
  std::memcpy(&xs, x, n * sizeof(T));
  std::memcpy(&ls, l, n * sizeof(T));
}

// The sum of one row of n, and x − σ(l) where wanted. Blocks are summed in T, their sums in double.
template <class T, bool slopes>
INLINE T sum_row(const T* x, const T* l, ptrdiff_t n, T* slope) {
  constexpr int L = kLanes<T>;
  decltype(widen(Vec<T>{})) total = {};
  ptrdiff_t i = 0;
  while (i < n) {
    Vec<T> linear = Vec<T>{}, product = Vec<T>{};
    int left = kBlock;
    for (; left > 0 && i + L <= n; --left, i += L) {
      Vec<T> xs = read<T>(x + i), ls = read<T>(l + i);
      Element<T> at(xs, ls);
      linear += at.left * ls;
      product += at.e + product * at.e;
      if (slopes) write<T>(slope + i, at.slope(ls));
    }
    if (left > 0 && i < n) {
      Vec<T> xs, ls;
      read_rest<T>(x + i, l + i, n - i, xs, ls);
      Element<T> at(xs, ls);
      linear += at.left * ls;
      product += at.e + product * at.e;
      if (slopes) {
        Vec<T> out = at.slope(ls);
        std::memcpy(slope + i, &out, (n - i) * sizeof(T));
      }
      i = n;
    }
    total += widen(linear - log1p_of_positive<T>(product));
  }
  double sum = 0;
  for (int k = 0; k < L; ++k) sum += total[k];
  return T(sum);
}

// Row r of l meets row r mod B of x.
template <class T>
void sums(ptrdiff_t R, ptrdiff_t B, ptrdiff_t n, const T* x, const T* l, T* out, T* slope) {
  for (ptrdiff_t r = 0; r < R; ++r) {
    const T *xr = x + r % B * n, *lr = l + r * n;
    out[r] = slope ? sum_row<T, true>(xr, lr, n, slope + r * n) : sum_row<T, false>(xr, lr, n, nullptr);
  }
}

}  // namespace

#define DEFINE(T, suffix)                                                                                  \
  extern "C" __attribute__((visibility("default"))) void bernoulli_sums_##suffix(                          \
      ptrdiff_t R, ptrdiff_t B, ptrdiff_t n, const T* x, const T* l, T* out, T* slope) {                   \
    sums<T>(R, B, n, x, l, out, slope);                                                                    \
  }

DEFINE(float, f32)
DEFINE(double, f64)
