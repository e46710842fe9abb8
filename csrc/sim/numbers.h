// The narrow formats' values, exactly as the hardware reads and rounds them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace vggfast::sim {

inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }
inline float from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                     : exponent     ? std::ldexp(float(mantissa | 1024), exponent - 25)
                                    : std::ldexp(float(mantissa), -24);
  return bits & 0x8000 ? -size : size;
}
/// The tensor cores read the upper 19 bits of a float32.
inline float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

/// To the nearest, ties to even.
inline uint16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_f16(float value) {
  if (value != value) return 0x7fff;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = size > 0 ? std::max(std::ilogb(size), -14) : -14;
  // Steps of 2^(exponent - 10), the leading bit among them: carries go where they belong.
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}
/// To the nearest, ties away from zero (cvt.rna).
inline uint32_t to_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value != value ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

/// To the nearest, ties to even, as TMA loads by a map of TF32. Infinities and NaN stay as they are.
inline uint32_t to_tf32_even(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0xfffu + (bits >> 13 & 1)) & 0xffffe000u;
}

/// An 8-bit format: one bit of sign, then exponent and mantissa. Either is rounded to the nearest, ties to even, and
/// what is too large becomes the largest finite value (cvt.rn.satfinite).
template <int MantissaBits, int Bias, int LargestCode>
struct Minifloat {
  static float decode(uint8_t bits) {
    const int exponent = (bits & 0x7f) >> MantissaBits, mantissa = bits & ((1 << MantissaBits) - 1);
    const float size = exponent ? std::ldexp(float(mantissa | 1 << MantissaBits), exponent - Bias - MantissaBits)
                                : std::ldexp(float(mantissa), 1 - Bias - MantissaBits);
    return bits & 0x80 ? -size : size;
  }
  static uint8_t encode(float value) {
    if (value != value) return 0x7f;
    const int sign = std::signbit(value) ? 0x80 : 0;
    const float size = std::fabs(value);
    if (size >= decode(LargestCode)) return static_cast<uint8_t>(sign | LargestCode);
    const int exponent = size > 0 ? std::max(std::ilogb(size), 1 - Bias) : 1 - Bias;
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, MantissaBits - exponent)));
    // Steps count within the exponent; its own bits are one less where the leading bit is among the steps.
    return static_cast<uint8_t>(sign | (((exponent + Bias - 1) << MantissaBits) + steps));
  }
};
using E4m3 = Minifloat<3, 7, 0x7e>;
using E5m2 = Minifloat<2, 15, 0x7b>;

inline float from_e4m3(uint8_t bits) { return (bits & 0x7f) == 0x7f ? NAN : E4m3::decode(bits); }
inline float from_e5m2(uint8_t bits) {
  if ((bits & 0x7f) > 0x7c) return NAN;
  if ((bits & 0x7f) == 0x7c) return bits & 0x80 ? -INFINITY : INFINITY;
  return E5m2::decode(bits);
}
inline uint8_t to_e4m3(float value) { return E4m3::encode(value); }
inline uint8_t to_e5m2(float value) { return E5m2::encode(value); }

}  // namespace vggfast::sim
