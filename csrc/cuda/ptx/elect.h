// elect.sync: one lane of a warp, for what a single thread does.
#pragma once

#include "cuda/ptx/sync.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// True in one lane of `mask`, always the same one.
VGGFAST_PTX bool elect(uint32_t mask = all_lanes) {
#ifdef VGGFAST_SIM
  return sim::elect(mask);
#else
  uint32_t is_elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, %1;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(is_elected)
      : "r"(mask)
      : "memory");
  return is_elected;
#endif
}

}  // namespace vggfast::ptx
