// mbarrier: 8 bytes of shared memory, aligned, on which threads arrive and TMA counts bytes. A phase ends once all
// arrivals and all expected bytes have come; phases have parity 0, 1, 0, ... from the init on.
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// By one thread, which then does fence_mbarrier_init() before the others learn of it.
VGGFAST_PTX void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
#ifdef VGGFAST_SIM
  sim::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

/// Before the bytes become something else.
VGGFAST_PTX void mbarrier_inval(uint64_t* barrier) {
#ifdef VGGFAST_SIM
  sim::mbarrier_inval(barrier);
#else
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

VGGFAST_PTX void mbarrier_arrive(uint64_t* barrier) {
#ifdef VGGFAST_SIM
  sim::mbarrier_arrive(barrier, 1);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

/// On the barrier of block `rank` of the cluster that lies where `barrier` lies in this one. It orders for that block
/// only what is over: products that were waited for, and TMA loads. Plain loads and stores it does not.
VGGFAST_PTX void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
#ifdef VGGFAST_SIM
  sim::mbarrier_arrive_remote(barrier, rank, sim::Scope::block);
#else
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}

/// As mbarrier_arrive_cluster, and orders plain loads and stores for who waits by
/// mbarrier_try_wait_parity_acquire_cluster. The compiler makes a barrier of all memory of it, at the GPU's scope.
VGGFAST_PTX void mbarrier_arrive_release_cluster(uint64_t* barrier, uint32_t rank) {
#ifdef VGGFAST_SIM
  sim::mbarrier_arrive_remote(barrier, rank, sim::Scope::cluster);
#else
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}

/// The phase now under way ends only after `bytes` more have come.
VGGFAST_PTX void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes) {
#ifdef VGGFAST_SIM
  sim::mbarrier_expect_tx(barrier, bytes);
#else
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

VGGFAST_PTX void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
#ifdef VGGFAST_SIM
  sim::mbarrier_arrive_expect_tx(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

/// mbarrier.try_wait, until it succeeds: the phase of this parity is over. A new barrier counts as after one of
/// parity 1.
VGGFAST_PTX void mbarrier_try_wait_parity(const uint64_t* barrier, uint32_t parity) {
#ifdef VGGFAST_SIM
  sim::mbarrier_wait_parity(barrier, parity, sim::Scope::block);
#else
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

/// As mbarrier_try_wait_parity, and plain loads and stores of other blocks before mbarrier_arrive_release_cluster are
/// ordered before those that follow. The compiler empties L1 behind it.
VGGFAST_PTX void mbarrier_try_wait_parity_acquire_cluster(const uint64_t* barrier, uint32_t parity) {
#ifdef VGGFAST_SIM
  sim::mbarrier_wait_parity(barrier, parity, sim::Scope::cluster);
#else
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

}  // namespace vggfast::ptx
