// The larger of two numbers.
#pragma once

#include <bit>
#include <cmath>

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// NaN, of all bits but the sign, where either is; of zeros of both signs, the positive one.
VGGFAST_PTX float max_nan(float a, float b) {
#ifdef VGGFAST_SIM
  if (a != a || b != b) return std::bit_cast<float>(0x7fffffffu);
  return a > b || (a == b && std::signbit(b)) ? a : b;
#else
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#endif
}

}  // namespace vggfast::ptx
