// Clusters: their barrier, a block's place, and the other blocks' shared memory.
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// barrier.cluster.arrive, of every thread of the cluster; what it did before is seen by who has waited.
VGGFAST_PTX void barrier_cluster_arrive() {
#ifdef VGGFAST_SIM
  sim::cluster_arrive(true);
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

/// As barrier_cluster_arrive, without its barrier of all memory: of what the thread did before, who has waited sees
/// mbarriers that a fence_mbarrier_init() followed, and knows that products and TMA loads are over.
VGGFAST_PTX void barrier_cluster_arrive_relaxed() {
#ifdef VGGFAST_SIM
  sim::cluster_arrive(false);
#else
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

VGGFAST_PTX void barrier_cluster_wait() {
#ifdef VGGFAST_SIM
  sim::cluster_wait();
#else
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// The block's number in its cluster.
VGGFAST_PTX uint32_t cluster_ctarank() {
#ifdef VGGFAST_SIM
  return sim::cluster_rank();
#else
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

VGGFAST_PTX uint32_t cluster_nctarank() {
#ifdef VGGFAST_SIM
  return sim::cluster_blocks();
#else
  uint32_t blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
#endif
}

/// What lies in block `rank` of the cluster where `shared` lies in this one, for plain loads and stores. A cluster
/// barrier comes before the first and after the last.
template <class T>
VGGFAST_PTX T* mapa(T* shared, uint32_t rank) {
#ifdef VGGFAST_SIM
  return static_cast<T*>(sim::mapa(shared, rank));
#else
  uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(there);
#endif
}

}  // namespace vggfast::ptx
