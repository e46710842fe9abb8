// bfloat16 in the C++ tests, whose tensors are else of float or double.
#pragma once

#include <bit>

#include "tensors.h"

namespace vggfast::test {

/// Of a number that bfloat16 holds; of others, what truncation leaves.
inline uint16_t bits_of(double x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16);
}
inline double value_of(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// To the nearest, ties to even; not of NaN.
inline float rounded_to_bf16(double x) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(x));
  return std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

inline Array truncated(Array a) {
  for (double& v : a.values) v = value_of(bits_of(v));
  return a;
}

inline Held put_bf16(const Array& a) {
  Held held = make(DType::bf16, a.shape(), nhwc_order);
  for_each_element(held, [&](int64_t at, size_t i) { held.view.as<uint16_t>()[at] = bits_of(a.values[i]); });
  return held;
}

}  // namespace vggfast::test
