// What a convolution does to its sums before it stores them: bias, ReLU, 2x2/2 max-pool, mask; and the bit planes of a
// mask (vggfast/mask.h), read and written a vector of channels at a time.
#pragma once

#include "cpu/isa/simd.h"
#include "cpu/kernel_table.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

/// The bits of channels [c, c + lanes) in one pixel's `bytes` bytes of a plane. c is a multiple of `lanes`.
template <class T>
typename Vec<T>::Mask load_bits(const uint8_t* plane, int64_t bytes, int64_t c) {
  uint32_t bits = plane[c / 8];
  if (Vec<T>::lanes > 8 && c / 8 + 1 < bytes) bits |= (uint32_t)plane[c / 8 + 1] << 8;
  return Vec<T>::from_bits((bits >> (c % 8)) & ((1u << Vec<T>::lanes) - 1));
}

/// Writes these bits. Where several vectors share a byte, the one with its first bit comes first and overwrites the
/// byte; the others add their bits.
template <class T>
void store_bits(uint8_t* plane, int64_t bytes, int64_t c, typename Vec<T>::Mask mask) {
  uint32_t bits = Vec<T>::bits(mask) << (c % 8);
  plane[c / 8] = (uint8_t)(c % 8 == 0 ? bits : plane[c / 8] | bits);
  if (Vec<T>::lanes > 8 && c / 8 + 1 < bytes) plane[c / 8 + 1] = (uint8_t)(bits >> 8);
}

/// Stores channels [c, c + lanes) of output pixel `pixel` (of the whole batch) from its sums: sums[0], or with Pool the
/// four sums of its window, row-major.
template <bool Pool, class T, class S>
inline __attribute__((always_inline)) void store_output(const ConvOutput<S>& out, int64_t pixel, int64_t c,
                                                        typename Vec<T>::Value bias,
                                                        const typename Vec<T>::Value* sums) {
  using V = Vec<T>;
  typename V::Value best = sums[0] + bias;
  typename V::Mask column{}, below{};
  if constexpr (Pool) {
#pragma GCC unroll 4
    for (int i = 1; i < 4; ++i) {
      const typename V::Value next = sums[i] + bias;
      const typename V::Mask better = replaces<T>(next, best);
      best = V::select(better, next, best);
      column = better ? (typename V::Mask){} - (i & 1) : column;
      below = better ? (typename V::Mask){} - (i >> 1) : below;
    }
  }
  const typename V::Mask pass = passes<T>(best);
  if (out.relu) best = V::select(pass, best, V::zero());
  if (out.mask) {
    const int64_t image = out.h * out.w, bytes = (out.c + 7) / 8, planes = (out.relu ? 1 : 0) + (Pool ? 2 : 0);
    uint8_t* plane = out.mask + (pixel / image * planes * image + pixel % image) * bytes;
    if (out.relu) {
      store_bits<T>(plane, bytes, c, pass);
      plane += image * bytes;
    }
    if constexpr (Pool) {
      store_bits<T>(plane, bytes, c, column);
      store_bits<T>(plane + image * bytes, bytes, c, below);
    }
  }
  S* y = out.y + pixel * out.c + c;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (out.stream) return V::stream(y, best);
  }
  c + V::lanes <= out.c ? V::store(y, best) : V::store(y, best, out.c - c);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
