// Vectors of numbers: elementary functions, the way between memory and lanes, memory to work in.
//
// The functions have no branches and no tables, and are accurate to a few units in the last place over
// the whole range; NaN passes through. Sizes follow the widest vectors of the processor.
//
// Only GCC's vector extensions are used, which clang has too: no intrinsics, no libraries.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

namespace varflow {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

#define INLINE inline __attribute__((always_inline))

template <class T>
struct Numbers;

template <>
struct Numbers<float> {
  typedef float Vec __attribute__((vector_size(kBytes)));
  typedef int32_t Int __attribute__((vector_size(kBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
  using Bit = uint32_t;
  static constexpr int mantissa = 23, bias = 127, exp_terms = 6, log_terms = 4;
  static constexpr float magic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  static constexpr float lowest = -87.0f;      // e^lowest is still normal
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr Bit root_half = 0x3f3504f3;
};

template <>
struct Numbers<double> {
  typedef double Vec __attribute__((vector_size(kBytes)));
  typedef int64_t Int __attribute__((vector_size(kBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kBytes)));
  using Bit = uint64_t;
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 12, log_terms = 10;
  static constexpr double magic = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr double lowest = -708.0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
  static constexpr Bit root_half = 0x3fe6a09e667f3bcd;
};

template <class T> using Vec = typename Numbers<T>::Vec;
template <class T> constexpr int kLanes = kBytes / sizeof(T);
template <class T> constexpr T kTiny = std::numeric_limits<T>::min();

template <class T>
INLINE Vec<T> all(T x) {
  return Vec<T>{} + x;
}

// e^x and e^x − 1 for x ≤ 0, both to full relative accuracy; e^x is 0 below the normal numbers.
template <class T>
struct Exp {
  Vec<T> value, minus_one;
};

template <class T>
INLINE Exp<T> exp_of_negative(Vec<T> x) {
  using S = Numbers<T>;
  auto lost = x < S::lowest;
  Vec<T> y = lost ? all<T>(S::lowest) : x;
  Vec<T> shifted = y * T(1.44269504088896340736) + S::magic;
  Vec<T> n = shifted - S::magic;
  Vec<T> r = (y - n * S::ln2_high) - n * S::ln2_low;
  Vec<T> power = (Vec<T>)(((typename S::Bits)shifted + S::bias) << S::mantissa);  // 2ⁿ
  // Taylor: e^r − 1 = r (1 + r/2 (1 + r/3 (1 + …))), |r| ≤ ln(2)/2.
  Vec<T> q = all<T>(1);
#pragma GCC unroll 16
  for (int i = S::exp_terms; i > 0; --i) q = q * r * (T(1) / T(i + 1)) + T(1);
  q = q * r;
  Vec<T> minus_one = power * q + (power - T(1));
  Vec<T> value = power * q + power;
  return {lost ? all<T>(0) : value, lost ? all<T>(-1) : minus_one};
}

// log(1 + f) for |f| ≤ √2 − 1: 2 atanh(f / (2 + f)).
template <class T>
INLINE Vec<T> log1p_near(Vec<T> f) {
  Vec<T> s = f / (f + T(2)), square = s * s, sum = Vec<T>{};
#pragma GCC unroll 16
  for (int i = Numbers<T>::log_terms; i > 0; --i) sum = (sum + T(2) / T(2 * i + 1)) * square;
  return s * sum + T(2) * s;
}

// log(1 + y) for −0.65 ≤ y ≤ 1.
template <class T>
INLINE Vec<T> log1p(Vec<T> y) {
  auto high = y > T(0.41421356), low = y < T(-0.29289322);
  Vec<T> f = high ? (y - T(1)) * T(0.5) : low ? T(2) * y + T(1) : y;
  Vec<T> n = high ? all<T>(1) : low ? all<T>(-1) : all<T>(0);
  using S = Numbers<T>;
  return n * S::ln2_high + (log1p_near<T>(f) + n * S::ln2_low);
}

// log x for normal x > 0; an infinity and NaN are passed on.
template <class T>
INLINE Vec<T> log_of_normal(Vec<T> x) {
  using S = Numbers<T>;
  using Int = typename S::Int;
  using Bits = typename S::Bits;
  Int exponent = (Int)((Bits)x - S::root_half) >> S::mantissa;
  Vec<T> f = (Vec<T>)((Bits)x - ((Bits)exponent << S::mantissa)) - T(1);
  typename S::Bit magic;
  T value = S::magic;
  std::memcpy(&magic, &value, sizeof magic);
  Vec<T> n = (Vec<T>)((Bits)exponent + magic) - S::magic;
  Vec<T> out = n * S::ln2_high + (log1p_near<T>(f) + n * S::ln2_low);
  return x <= std::numeric_limits<T>::max() ? out : x;
}

template <class T>
INLINE Vec<T> magnitude(Vec<T> x) {
  using S = Numbers<T>;
  return (Vec<T>)((typename S::Bits)x & (~typename S::Bit(0) >> 1));
}

// h = tanh p and v = 1 − h², v without cancellation.
template <class T>
INLINE void tanh_and_slope(Vec<T> p, Vec<T>& h, Vec<T>& v) {
  using Bits = typename Numbers<T>::Bits;
  Vec<T> a = magnitude<T>(p);
  Exp<T> e = exp_of_negative<T>(T(-2) * a);
  Vec<T> inverse = T(1) / (e.minus_one + T(2));
  h = (Vec<T>)((Bits)(-e.minus_one * inverse) | ((Bits)p ^ (Bits)a));
  v = T(4) * e.value * inverse * inverse;
}

// ---------------------------------------------------------------- between memory and lanes

template <class T, int... I>
INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>& low, Vec<T>& high, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  low = __builtin_shufflevector(a, b, (I % 2 * L + I / 2)...);
  high = __builtin_shufflevector(a, b, (I % 2 * L + I / 2 + L / 2)...);
}

template <class T, int... I>
INLINE void apart(Vec<T> a, Vec<T> b, Vec<T>& even, Vec<T>& odd, std::integer_sequence<int, I...>) {
  even = __builtin_shufflevector(a, b, (2 * I)...);
  odd = __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// Numbers in pairs, a then b → the first and the second of each.
template <class T>
INLINE void apart(Vec<T> a, Vec<T> b, Vec<T>& first, Vec<T>& second) {
  apart<T>(a, b, first, second, std::make_integer_sequence<int, kLanes<T>>());
}

// x[i][l] ↔ x[l][i] for a square of lanes: log₂(lanes) perfect shuffles.
template <class T>
INLINE void transpose(Vec<T>* x) {
  constexpr int L = kLanes<T>;
  Vec<T> y[L];
#pragma GCC unroll 8
  for (int width = 1; width < L; width *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i)
      interleave<T>(x[i], x[i + L / 2], y[2 * i], y[2 * i + 1], std::make_integer_sequence<int, L>());
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) x[i] = y[i];
  }
}

template <class T>
INLINE Vec<T> read(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class T>
INLINE void write(T* to, Vec<T> x) {
  std::memcpy(to, &x, sizeof x);
}

// Lane l of to[i · step] ← from[l · stride + i]. Lanes beyond `lanes` repeat the last one.
template <class T>
void gather(const T* from, ptrdiff_t stride, int lanes, ptrdiff_t n, Vec<T>* to, int step) {
  constexpr int L = kLanes<T>;
  ptrdiff_t i = 0;
  for (; i + L <= n; i += L) {
    Vec<T> x[L];
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) x[l] = read<T>(from + (l < lanes ? l : lanes - 1) * stride + i);
    transpose<T>(x);
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) to[(i + l) * step] = x[l];
  }
  for (; i < n; ++i) {
    Vec<T> x;
    for (int l = 0; l < L; ++l) x[l] = from[(l < lanes ? l : lanes - 1) * stride + i];
    to[i * step] = x;
  }
}

template <class T>
void scatter(const Vec<T>* from, int step, T* to, ptrdiff_t stride, int lanes, ptrdiff_t n) {
  constexpr int L = kLanes<T>;
  ptrdiff_t i = 0;
  for (; i + L <= n; i += L) {
    Vec<T> x[L];
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) x[l] = from[(i + l) * step];
    transpose<T>(x);
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l)
      if (l < lanes) write<T>(to + l * stride + i, x[l]);
  }
  for (; i < n; ++i)
    for (int l = 0; l < lanes; ++l) to[l * stride + i] = from[i * step][l];
}

// to[i] = the sum of the lanes of from[i].
template <class T>
void sum_lanes(const Vec<T>* from, T* to, ptrdiff_t n) {
  constexpr int L = kLanes<T>;
  ptrdiff_t i = 0;
  for (; i + L <= n; i += L) {
    Vec<T> x[L], sum = Vec<T>{};
    for (int l = 0; l < L; ++l) x[l] = from[i + l];
    transpose<T>(x);
    for (int l = 0; l < L; ++l) sum += x[l];
    write<T>(to + i, sum);
  }
  for (; i < n; ++i) {
    T sum = 0;
    for (int l = 0; l < L; ++l) sum += from[i][l];
    to[i] = sum;
  }
}

// One block of memory a thread, kept between calls and handed out in pieces.
struct Arena {
  char* block = nullptr;
  size_t size = 0, used = 0;
  ~Arena() { std::free(block); }
  bool reserve(size_t bytes) {
    used = 0;
    bytes = (bytes + 4095) / 4096 * 4096;
    if (bytes <= size) return true;
    std::free(block);
    block = static_cast<char*>(std::aligned_alloc(64, bytes));
    size = block ? bytes : 0;
    return block != nullptr;
  }
  template <class X>
  X* take(ptrdiff_t n) {
    X* out = reinterpret_cast<X*>(block + used);
    used += (n * sizeof(X) + 63) / 64 * 64;
    return out;
  }
};
inline thread_local Arena arena;

}  // namespace varflow
