// Fences between what a thread did by plain loads and stores and what TMA and wgmma do, in shared memory.
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// fence.proxy.async: TMA and wgmma see this thread's stores to shared memory, once ordered after this. Whoever stored
/// does it, before the barrier.
VGGFAST_PTX void fence_proxy_async() {
#ifdef VGGFAST_SIM
  sim::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// fence.mbarrier_init: TMA and the cluster see the mbarriers that this thread has initialised, once ordered after
/// this.
VGGFAST_PTX void fence_mbarrier_init() {
#ifdef VGGFAST_SIM
  sim::fence_mbarrier_init();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

}  // namespace vggfast::ptx
