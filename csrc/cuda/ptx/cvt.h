// Conversions between float32 and the narrow formats, which memory holds as bit patterns.
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/numbers.h"
#endif

namespace vggfast {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};

}  // namespace vggfast

namespace vggfast::ptx {

/// A float32 of these bits, and its bits.
VGGFAST_PTX float as_float(uint32_t bits) {
#ifdef VGGFAST_SIM
  return std::bit_cast<float>(bits);
#else
  return __uint_as_float(bits);
#endif
}
VGGFAST_PTX uint32_t as_bits(float value) {
#ifdef VGGFAST_SIM
  return std::bit_cast<uint32_t>(value);
#else
  return __float_as_uint(value);
#endif
}

VGGFAST_PTX float cvt_f32(bf16 value) {
#ifdef VGGFAST_SIM
  return sim::from_bf16(value.bits);
#else
  return __uint_as_float(uint32_t(value.bits) << 16);
#endif
}

VGGFAST_PTX float cvt_f32(f16 value) {
#ifdef VGGFAST_SIM
  return sim::from_f16(value.bits);
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#endif
}

/// To the nearest, ties to even.
VGGFAST_PTX bf16 cvt_rn_bf16(float value) {
#ifdef VGGFAST_SIM
  return {sim::to_bf16(value)};
#else
  bf16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#endif
}

VGGFAST_PTX f16 cvt_rn_f16(float value) {
#ifdef VGGFAST_SIM
  return {sim::to_f16(value)};
#else
  f16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#endif
}

/// max(0, value) of both to the nearest, ties to even; NaN stays. `low` is the lower half.
VGGFAST_PTX uint32_t cvt_rn_relu_bf16x2(float high, float low) {
#ifdef VGGFAST_SIM
  return uint32_t(sim::to_bf16(high < 0 ? 0.0f : high)) << 16 | sim::to_bf16(low < 0 ? 0.0f : low);
#else
  uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

VGGFAST_PTX uint32_t cvt_rn_relu_f16x2(float high, float low) {
#ifdef VGGFAST_SIM
  return uint32_t(sim::to_f16(high < 0 ? 0.0f : high)) << 16 | sim::to_f16(low < 0 ? 0.0f : low);
#else
  uint32_t pair;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

/// Both to the nearest e4m3, ties to even, or to the largest finite one: `low` is the lower byte.
VGGFAST_PTX uint16_t cvt_rn_satfinite_e4m3x2(float high, float low) {
#ifdef VGGFAST_SIM
  return static_cast<uint16_t>(sim::to_e4m3(high) << 8 | sim::to_e4m3(low));
#else
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

/// A float32's bits to the nearest of the values that tensor cores read, ties away from zero.
VGGFAST_PTX uint32_t cvt_rna_tf32(float value) {
#ifdef VGGFAST_SIM
  return sim::to_tf32(value);
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
#endif
}

}  // namespace vggfast::ptx
