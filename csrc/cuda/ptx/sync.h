// Shared memory, __syncthreads, __syncwarp, named barriers.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

constexpr uint32_t all_lanes = 0xffffffff;

/// The block's dynamic shared memory, at a multiple of 1024.
VGGFAST_PTX char* shared_memory() {
#ifdef VGGFAST_SIM
  return sim::shared_memory();
#else
  extern __shared__ __align__(1024) char dynamic_shared_memory[];
  return dynamic_shared_memory;
#endif
}

VGGFAST_PTX void sync_threads() {
#ifdef VGGFAST_SIM
  sim::sync_threads();
#else
  __syncthreads();
#endif
}

VGGFAST_PTX void sync_warp(uint32_t mask = all_lanes) {
#ifdef VGGFAST_SIM
  sim::sync_warp(mask);
#else
  __syncwarp(mask);
#endif
}

/// bar.sync: waits until `threads` threads have come to `barrier`.
VGGFAST_PTX void barrier_sync(unsigned barrier, unsigned threads) {
#ifdef VGGFAST_SIM
  sim::barrier_sync(barrier, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}

/// bar.arrive: counts as one of `threads`, and goes on.
VGGFAST_PTX void barrier_arrive(unsigned barrier, unsigned threads) {
#ifdef VGGFAST_SIM
  sim::barrier_arrive(barrier, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}

}  // namespace vggfast::ptx
