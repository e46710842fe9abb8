// Local response normalisation over NHWC: a pixel's channels lie side by side, and each window slides over them.
//   s[c] = k + alpha / size * (sum of x^2 over the window of c);  y = x * s^-beta
//   gx[c] = gy[c] * s[c]^-beta - 2 alpha beta / size * x[c] * (sum of gy x s^(-beta - 1) over the windows with c)
#pragma once

#include <math.h>

#include "cpu/isa/simd.h"
#include "cpu/kernel_table.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

/// s^-beta, without pow for the paper's beta, 0.75.
inline float inverse_power(float s, float beta) {
  return beta == 0.75f ? 1.0f / (__builtin_sqrtf(s) * __builtin_sqrtf(__builtin_sqrtf(s))) : ::powf(s, -beta);
}
inline double inverse_power(double s, double beta) {
  return beta == 0.75 ? 1.0 / (__builtin_sqrt(s) * __builtin_sqrt(__builtin_sqrt(s))) : ::pow(s, -beta);
}

/// out[c] = sum of f(j) for j from c - before to c + after, within [0, channels).
template <class T, class F>
inline void window_sums(int64_t channels, int64_t before, int64_t after, T* out, F f) {
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t shift = -min(before, channels); shift <= min(after, channels); ++shift) {
    const int64_t begin = max<int64_t>(0, -shift), end = min(channels, channels - shift);
    for (int64_t c = begin; c < end; ++c) out[c] += f(c + shift);
  }
}

template <class T>
void lrn_fprop(const LrnArgs<T>& a, int64_t pixel_begin, int64_t pixel_end) {
  for (int64_t pixel = pixel_begin; pixel < pixel_end; ++pixel) {
    const T* x = a.x + pixel * a.channels;
    T* y = a.out + pixel * a.channels;
    window_sums(a.channels, a.size / 2, (a.size - 1) / 2, y, [&](int64_t c) { return x[c] * x[c]; });
    for (int64_t c = 0; c < a.channels; ++c) y[c] = x[c] * inverse_power(a.k + a.alpha_over_size * y[c], a.beta);
  }
}

template <class T>
void lrn_dgrad(const LrnArgs<T>& a, int64_t pixel_begin, int64_t pixel_end, T* scratch) {
  T* power = scratch;                 // s, then s^-beta
  T* product = scratch + a.channels;  // gy x s^(-beta - 1)
  for (int64_t pixel = pixel_begin; pixel < pixel_end; ++pixel) {
    const T* x = a.x + pixel * a.channels;
    const T* gy = a.gy + pixel * a.channels;
    T* gx = a.out + pixel * a.channels;
    window_sums(a.channels, a.size / 2, (a.size - 1) / 2, power, [&](int64_t c) { return x[c] * x[c]; });
    for (int64_t c = 0; c < a.channels; ++c) {
      const T s = a.k + a.alpha_over_size * power[c];
      power[c] = inverse_power(s, a.beta);
      product[c] = gy[c] * x[c] * power[c] / s;
    }
    window_sums(a.channels, (a.size - 1) / 2, a.size / 2, gx, [&](int64_t c) { return product[c]; });
    const T scale = 2 * a.alpha_over_size * a.beta;
    for (int64_t c = 0; c < a.channels; ++c) gx[c] = gy[c] * power[c] - scale * x[c] * gx[c];
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
