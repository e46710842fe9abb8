// The one-dimensional transforms of Winograd's F(m, 3), m = 2, 4, 6, for vectors of channels; and F(1, 1).
//
//   y = At [(G g) * (Bt d)]   fprop: n = m + 2 inputs d, 3 weights g, m outputs y
//   dg = Gt [(Bt d) * (A dy)]  wgrad: the same algorithm, differentiated with respect to g
//
// The n points are 0, +-p for each p of `points`, and infinity, in this order. Row j of Bt, G and A belongs to point j.
// Rows of +p and -p differ by the sign of their odd terms, so each pair shares two sums. Coefficients are computed from
// the points at compile time. The points of m = 4 are 3/4 and 3/2, with half the rounding error of the usual 1 and 2:
//
//   F(4, 3), by point   Bt                                           G                         A
//          0            81/64       0  -45/16       0       1       0     64/81       0       0   1     0     0      0
//        3/4                0  -27/16    -9/4     3/4       1       0  -128/243  -32/81   -8/27   1   3/4  9/16  27/64
//       -3/4                0   27/16    -9/4    -3/4       1       0  -128/243   32/81   -8/27   1  -3/4  9/16 -27/64
//        3/2                0  -27/32   -9/16     3/2       1       0    32/243   16/81    8/27   1   3/2   9/4   27/8
//       -3/2                0   27/32   -9/16    -3/2       1       0    32/243  -16/81    8/27   1  -3/2   9/4  -27/8
//   infinity                0   81/64       0  -45/16       0       1         0       0       1   0     0     0      1
//
// Source: Lavin & Gray, 2016; Toom and Cook's construction.
#pragma once

#include "cpu/isa/simd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <int M>
struct WinogradPoints;
template <>
struct WinogradPoints<2> {
  static constexpr double points[] = {1};
};
template <>
struct WinogradPoints<4> {
  static constexpr double points[] = {0.75, 1.5};
};
template <>
struct WinogradPoints<6> {
  static constexpr double points[] = {1, 2, 0.5};
};

/// Coefficients of x^0, x^2, x^4, ... in the product of (x^2 - p^2) over all p of `points` except number `left_out`.
template <int M>
struct EvenPolynomial {
  double of[M / 2 + 1] = {1};

  constexpr explicit EvenPolynomial(int left_out) {
    int degree = 0;
    for (int i = 0; i < M / 2; ++i) {
      if (i == left_out) continue;
      const double square = WinogradPoints<M>::points[i] * WinogradPoints<M>::points[i];
      ++degree;
      for (int e = degree; e >= 0; --e) of[e] = (e > 0 ? of[e - 1] : 0) - (e < degree ? square * of[e] : 0);
    }
  }
};

template <int M>
struct Winograd {
  static constexpr int m = M, n = M + 2, points = n * n, taps = 3;
  static constexpr int pairs = M / 2;
  using V = Vec<float>;
  using Value = V::Value;

  static constexpr double point(int pair) { return WinogradPoints<M>::points[pair]; }

  /// v = Bt d.
  static void input(const Value (&d)[n], Value (&v)[n]) {
    constexpr EvenPolynomial<M> all(-1);
    v[0] = polynomial<pairs>(all, d, 0);
    v[n - 1] = polynomial<pairs>(all, d, 1);
    for_pairs([&]<int pair>() {
      constexpr EvenPolynomial<M> others(pair);
      const Value even = polynomial<pairs - 1>(others, d, 2), odd = polynomial<pairs - 1>(others, d, 1);
      v[1 + 2 * pair] = even + (float)point(pair) * odd;
      v[2 + 2 * pair] = even - (float)point(pair) * odd;
    });
  }

  /// y = At v.
  static void output(const Value (&v)[n], Value (&y)[m]) {
    for_range<m>([&]<int i>() { y[i] = i == 0 ? v[0] : i == m - 1 ? v[n - 1] : V::zero(); });
    for_pairs([&]<int pair>() {
      const Value sum = v[1 + 2 * pair] + v[2 + 2 * pair], difference = v[1 + 2 * pair] - v[2 + 2 * pair];
      for_range<m>([&]<int i>() {
        constexpr float power = (float)power_of(point(pair), i);
        y[i] += i % 2 ? power * difference : power * sum;
      });
    });
  }

  /// z = A g.
  static void gradient(const Value (&g)[m], Value (&z)[n]) {
    z[0] = g[0];
    z[n - 1] = g[m - 1];
    for_pairs([&]<int pair>() {
      Value even = g[0], odd = (float)point(pair) * g[1];
      for_range<m>([&]<int i>() {
        if constexpr (i >= 2) (i % 2 ? odd : even) += (float)power_of(point(pair), i) * g[i];
      });
      z[1 + 2 * pair] = even + odd;
      z[2 + 2 * pair] = even - odd;
    });
  }

  /// Row j of G, for weights that are packed; and column j of Gt, for their gradient when it is unpacked.
  static constexpr double weight(int j, int tap) {
    if (j == n - 1) return tap == 2 ? 1 : 0;
    double norm = 1;  // the product of this point's distances to the others
    const double p = j == 0 ? 0 : j % 2 ? point((j - 1) / 2) : -point((j - 1) / 2);
    for (int k = 0; k < n - 1; ++k) {
      const double q = k == 0 ? 0 : k % 2 ? point((k - 1) / 2) : -point((k - 1) / 2);
      if (k != j) norm *= p - q;
    }
    return power_of(p, tap) / norm;
  }

 private:
  static constexpr double power_of(double p, int exponent) { return exponent == 0 ? 1 : p * power_of(p, exponent - 1); }

  /// The sum over e of c[e] * d[2 * e + first]; the leading coefficient is 1.
  template <int degree>
  static inline __attribute__((always_inline)) Value polynomial(const EvenPolynomial<M>& c, const Value (&d)[n],
                                                                int first) {
    Value sum = d[2 * degree + first];
#pragma GCC unroll 8
    for (int e = degree - 1; e >= 0; --e) sum += (float)c.of[e] * d[2 * e + first];
    return sum;
  }

  template <int count, int i = 0, class Body>
  static inline __attribute__((always_inline)) void for_range(Body body) {
    if constexpr (i < count) {
      body.template operator()<i>();
      for_range<count, i + 1>(body);
    }
  }
  template <class Body>
  static inline __attribute__((always_inline)) void for_pairs(Body body) {
    for_range<pairs>(body);
  }
};

/// F(1, 1), whose transforms change nothing: 1x1 convolution by the same products.
template <>
struct Winograd<1> {
  static constexpr int m = 1, n = 1, points = 1, taps = 1;
  using Value = Vec<float>::Value;

  static void input(const Value (&d)[1], Value (&v)[1]) { v[0] = d[0]; }
  static void output(const Value (&v)[1], Value (&y)[1]) { y[0] = v[0]; }
  static void gradient(const Value (&g)[1], Value (&z)[1]) { z[0] = g[0]; }
  static constexpr double weight(int, int) { return 1; }
};

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
