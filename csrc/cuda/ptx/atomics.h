// Additions to global memory that others may add to as well, in no order.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// Returns what was there before.
VGGFAST_PTX unsigned atomic_add(unsigned* address, unsigned value) {
#ifdef VGGFAST_SIM
  return sim::atomic_add(address, value);
#else
  return atomicAdd(address, value);
#endif
}

}  // namespace vggfast::ptx
