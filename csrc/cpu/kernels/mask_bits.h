// Reading and writing the bit planes of vggfast/mask.h, a vector of channels at a time.
#pragma once

#include "cpu/isa/simd.h"

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

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
