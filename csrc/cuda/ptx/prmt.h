// Bytes of one register in another order.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// Byte i is byte `selector` >> 4 i & 7 of `value` (below 4), or, where bit 3 is set, that byte's sign all over.
VGGFAST_PTX uint32_t prmt(uint32_t value, uint32_t selector) {
#ifdef VGGFAST_SIM
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i), byte = value >> (8 * (nibble & 3)) & 0xff;
    result |= (nibble & 8 ? (byte >> 7) * 0xff : byte) << (8 * i);
  }
  return result;
#else
  uint32_t result;
  asm("prmt.b32 %0, %1, %1, %2;" : "=r"(result) : "r"(value), "r"(selector));
  return result;
#endif
}

}  // namespace vggfast::ptx
