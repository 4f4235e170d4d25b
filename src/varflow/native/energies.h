// The four energies of varflow/targets/energies.py on vectors of points: log π(z) up to its constant, and its gradient.

#pragma once

#include "vector.h"

namespace varflow {

// sin(π x / 2) and cos(π x / 2): x less its nearest integer, then a series on |angle| ≤ π/4. NaN passes through; where x has
// no fraction left the answer is that of 0.
template <class T>
INLINE void quarter_waves(Vec<T> x, Vec<T>& sine, Vec<T>& cosine) {
  using S = Numbers<T>;
  using Bits = typename S::Bits;
  constexpr int terms = sizeof(T) == 4 ? 5 : 9;
  const T limit = S::magic / T(4);
  auto far = magnitude<T>(x) >= limit;
  const Vec<T> near = far ? all<T>(0) : x, shifted = near + S::magic, n = shifted - S::magic;
  const Vec<T> angle = (near - n) * T(1.57079632679489661923), square = -angle * angle;
  Vec<T> s = all<T>(1), c = all<T>(1);
#pragma GCC unroll 16
  for (int i = terms; i > 0; --i) {
    s = s * square * (T(1) / T(2 * i * (2 * i + 1))) + T(1);
    c = c * square * (T(1) / T(2 * i * (2 * i - 1))) + T(1);
  }
  s = s * angle;
  const Bits quarter = (Bits)shifted, top = Bits{} + (typename S::Bit(1) << (8 * sizeof(T) - 1));
  auto odd = (quarter & 1) != 0;
  const Vec<T> first = odd ? c : s, second = odd ? s : c;
  sine = (Vec<T>)((Bits)first ^ (((quarter & 2) != 0) ? top : Bits{}));
  cosine = (Vec<T>)((Bits)second ^ ((((quarter + 1) & 2) != 0) ? top : Bits{}));
}

// log(e^a + e^b), and the shares of a and b in the sum.
template <class T>
INLINE Vec<T> log_add(Vec<T> a, Vec<T> b, Vec<T>& share_a, Vec<T>& share_b) {
  auto first = a > b;
  const Vec<T> e = exp_of_negative<T>(first ? b - a : a - b).value, larger = T(1) / (T(1) + e), smaller = e * larger;
  share_a = first ? larger : smaller;
  share_b = first ? smaller : larger;
  return (first ? a : b) + log1p<T>(e);
}

template <class T>
INLINE Vec<T> with_sign_of(Vec<T> size, Vec<T> x) {
  using Bits = typename Numbers<T>::Bits;
  return (Vec<T>)((Bits)size ^ ((Bits)x ^ (Bits)magnitude<T>(x)));
}

template <class T>
INLINE void add_wall(Vec<T> x, Vec<T>& log_p, Vec<T>& dx) {
  const Vec<T> a = magnitude<T>(x);
  // Not "a > 4 ? …": NaN has to stay.
  const Vec<T> beyond = a <= T(4) ? all<T>(0) : a - T(4);
  log_p -= T(5) * beyond * beyond;
  dx -= with_sign_of<T>(T(10) * beyond, x);
}

template <class T>
INLINE void log_prob_u1(Vec<T> x, Vec<T> y, Vec<T>& log_p, Vec<T>& dx, Vec<T>& dy) {
  const Vec<T> square = x * x + y * y, side = magnitude<T>(x);
  auto zero = square == T(0);
  Vec<T> r;
  const Vec<T> above = zero ? all<T>(1) : square;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes<T>; ++l) r[l] = std::sqrt(above[l]);
  const Vec<T> inverse = zero ? all<T>(0) : T(1) / r;
  r = zero ? all<T>(0) : r;
  const T steep = T(-4 / 0.36);
  const Vec<T> e = exp_of_negative<T>(steep * side).value;
  const Vec<T> near = (side - T(2)) * T(1 / 0.6), ring = (r - T(2)) * T(1 / 0.4);
  log_p = log1p<T>(e) - T(0.5) * (near * near + ring * ring);
  const Vec<T> across = e / (T(1) + e) * steep - near * T(1 / 0.6);
  const Vec<T> along = ring * T(1 / 0.4) * inverse;
  dx = (x == T(0) ? all<T>(0) : with_sign_of<T>(across, x)) - along * x;
  dy = -along * y;
}

// Two curves y = c(x) of widths s and t, or the first alone.
template <class T, int kind>
INLINE void log_prob_branches(Vec<T> x, Vec<T> y, Vec<T>& log_p, Vec<T>& dx, Vec<T>& dy) {
  Vec<T> wave, slope;
  quarter_waves<T>(x, wave, slope);
  slope = slope * T(1.57079632679489661923);
  const T width = kind == 3 ? T(0.35) : T(0.4);
  const Vec<T> t1 = (y - wave) / width, a = T(-0.5) * t1 * t1;
  if (kind == 2) {
    log_p = a;
    dy = -t1 / width;
    dx = -dy * slope;
  } else {
    Vec<T> dip, steep;
    if (kind == 3) {
      const Vec<T> v = (x - T(1)) * T(1 / 0.6);
      dip = T(3) * exp_of_negative<T>(T(-0.5) * v * v).value;
      steep = dip == T(0) ? all<T>(0) : -dip * v * T(1 / 0.6);
    } else {
      const Vec<T> v = (x - T(1)) * T(1 / 0.3), e = exp_of_negative<T>(-magnitude<T>(v)).value;
      const Vec<T> large = T(1) / (T(1) + e), small = e * large;
      dip = T(3) * (v > T(0) ? large : small);
      steep = T(3 / 0.3) * large * small;
    }
    const Vec<T> t2 = (y - wave + dip) / T(0.35), b = T(-0.5) * t2 * t2;
    Vec<T> share1, share2;
    log_p = log_add<T>(a, b, share1, share2);
    const Vec<T> pull1 = share1 * t1 / width, pull2 = share2 * t2 / T(0.35);
    dy = -pull1 - pull2;
    dx = pull1 * slope + pull2 * (slope - steep);
  }
  add_wall<T>(x, log_p, dx);
  add_wall<T>(y, log_p, dy);
}

template <class T>
INLINE void log_prob(int kind, Vec<T> x, Vec<T> y, Vec<T>& log_p, Vec<T>& dx, Vec<T>& dy) {
  if (kind == 1) log_prob_u1<T>(x, y, log_p, dx, dy);
  else if (kind == 2) log_prob_branches<T, 2>(x, y, log_p, dx, dy);
  else if (kind == 3) log_prob_branches<T, 3>(x, y, log_p, dx, dy);
  else log_prob_branches<T, 4>(x, y, log_p, dx, dy);
}

}  // namespace varflow
