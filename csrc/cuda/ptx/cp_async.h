// cp.async: copies from global to shared memory that the thread does not wait for.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// 16 bytes through L1, both addresses multiples of 16; zeros instead where `valid` is false, and nothing is read then.
VGGFAST_PTX void cp_async_ca_16(void* shared, const void* global, bool valid) {
#ifdef VGGFAST_SIM
  sim::cp_async(shared, global, 16, valid ? 16 : 0);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}

/// 16 bytes past L1.
VGGFAST_PTX void cp_async_cg_16(void* shared, const void* global) {
#ifdef VGGFAST_SIM
  sim::cp_async(shared, global, 16, 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}

VGGFAST_PTX void cp_async_commit_group() {
#ifdef VGGFAST_SIM
  sim::cp_async_commit_group();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most `StillInFlight` of this thread's groups have not landed.
template <int StillInFlight>
VGGFAST_PTX void cp_async_wait_group() {
#ifdef VGGFAST_SIM
  sim::cp_async_wait_group(StillInFlight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(StillInFlight) : "memory");
#endif
}

}  // namespace vggfast::ptx
