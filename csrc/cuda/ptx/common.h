// What every wrapper of this folder includes. Each wraps one instruction, is named after it, and has a twin for the
// simulator; kernels include what they use and hold no assembly.
#pragma once

#include <cstdint>

#ifdef VGGFAST_SIM
#include "sim/cuda.h"
#include "sim/instructions.h"
#define VGGFAST_PTX __forceinline__
#else
#define VGGFAST_PTX __device__ __forceinline__

namespace vggfast::ptx {

/// The 32-bit address that instructions on shared memory take.
VGGFAST_PTX uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace vggfast::ptx
#endif
