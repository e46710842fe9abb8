// Rings of stages in shared memory, between the threads that fill them and the warps that multiply from them. Each
// stage has two mbarriers. `full` completes when the bytes of all its loads have come. `empty` completes when every
// warp that reads the stage has arrived, in every block of the cluster that a load of it lands in.
// A ring needs no more than a block's scope, though blocks share it: TMA fills it, wgmma reads it, and who arrives has
// waited for either. A cluster's scope would cost a barrier of all memory for each stage.
#pragma once

#include "cuda/ptx/cluster.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda::sm90 {

constexpr int warpgroup_threads = 128, warpgroup_warps = 4;

/// Named barriers; 0 is __syncthreads'.
enum NamedBarrier : unsigned {
  staging_of_first_consumer = 1,
  staging_of_second_consumer,
  turn_of_first_consumer,
  turn_of_second_consumer,
  borders_of_first_layer
};

/// Of an arrival, and of who waits for it. Only where threads load and store what is in other blocks is it `cluster`.
enum class Scope { block, cluster };

template <int Stages>
struct Barriers {
  uint64_t full[Stages], empty[Stages];

  /// By one thread; `readers`, `writers`: arrivals that say that a stage has been read, written.
  __device__ __forceinline__ void init(unsigned readers, unsigned writers = 1) {
    for (int stage = 0; stage < Stages; ++stage) {
      ptx::mbarrier_init(&full[stage], writers);
      ptx::mbarrier_init(&empty[stage], readers);
    }
  }
};

/// The stage at which one side of a ring is, and the parity of its phase.
template <int Stages>
class PipelineState {
 public:
  __device__ __forceinline__ int stage() const { return stage_; }

  __device__ __forceinline__ void advance() {
    if (++stage_ < Stages) return;
    stage_ = 0;
    parity_ ^= 1;
  }
  /// Passes over stages that another warpgroup uses.
  __device__ __forceinline__ void skip(int stages) {
    const int to = stage_ + stages;
    parity_ ^= to / Stages & 1;
    stage_ = to % Stages;
  }

  template <Scope Of = Scope::block>
  __device__ __forceinline__ void wait_full(const Barriers<Stages>& barriers) const {
    wait<Of>(&barriers.full[stage_], parity_);
  }
  template <Scope Of = Scope::block>
  __device__ __forceinline__ void wait_empty(const Barriers<Stages>& barriers) const {
    wait<Of>(&barriers.empty[stage_], parity_ ^ 1);
  }
  /// For the side that fills: waits until all that it filled has been read, in every block.
  __device__ __forceinline__ void wait_all_empty(const Barriers<Stages>& barriers) {
    for (int stage = 0; stage < Stages; ++stage) {
      wait_empty(barriers);
      advance();
    }
  }

 private:
  template <Scope Of>
  __device__ __forceinline__ static void wait(const uint64_t* barrier, uint32_t parity) {
    if constexpr (Of == Scope::cluster) {
      ptx::mbarrier_try_wait_parity_acquire_cluster(barrier, parity);
    } else {
      ptx::mbarrier_try_wait_parity(barrier, parity);
    }
  }

  int stage_ = 0;
  uint32_t parity_ = 0;
};

/// One arrival of a warp, all of whose lanes call this, at this barrier of the blocks of ranks first, first + step, ...
template <int Blocks, Scope Of = Scope::block>
__device__ __forceinline__ void arrive(uint64_t* barrier, int first, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (Blocks == 1) {
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  } else if (lane < Blocks) {
    const uint32_t rank = static_cast<uint32_t>(first + lane * step);
    if constexpr (Of == Scope::cluster) {
      ptx::mbarrier_arrive_release_cluster(barrier, rank);
    } else {
      ptx::mbarrier_arrive_cluster(barrier, rank);
    }
  }
}

}  // namespace vggfast::cuda::sm90
