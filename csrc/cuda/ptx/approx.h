// The special-function unit's roots: 2 units in the last place, subnormal numbers included.
#pragma once

#include <cmath>

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

VGGFAST_PTX float sqrt_approx(float value) {
#ifdef VGGFAST_SIM
  return std::sqrt(value);
#else
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
#endif
}

VGGFAST_PTX float rsqrt_approx(float value) {
#ifdef VGGFAST_SIM
  return 1.0f / std::sqrt(value);
#else
  float root;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
#endif
}

}  // namespace vggfast::ptx
