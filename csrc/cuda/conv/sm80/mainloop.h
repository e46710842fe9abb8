// The loop that fprop and wgrad share: a ring of stages in shared memory, filled ahead of the products that use them. A
// step waits for the copies of its stage, then for all threads of the block, which have then finished with the stage of
// the step before. It starts to refill that one, and multiplies.
#pragma once

#include "cuda/conv/common/tile.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {

/// Calls, with a stage's address: fetch for every step in turn, which begins to bring it; store after it, once the
/// stage is free, for what fetch holds in registers; multiply once the stage is there.
template <class Tile, int StageBytes, class Fetch, class Store, class Multiply>
__device__ __forceinline__ void run_stages(int steps, Fetch fetch, Store store, Multiply multiply) {
  constexpr int ahead = Tile::stages - 1;
  char* const shared = ptx::shared_memory();
#pragma unroll 1
  for (int step = 0; step < ahead; ++step) {
    if (step < steps) {
      fetch(shared + step * StageBytes);
      store(shared + step * StageBytes);
    }
    ptx::cp_async_commit_group();
  }
  Ring<Tile::stages, StageBytes> full(0), free(ahead);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<ahead - 1>();
    ptx::sync_threads();
    const bool more = step + ahead < steps;
    char* const refilled = shared + free.next();
    if (more) fetch(refilled);
    ptx::cp_async_commit_group();
    multiply(static_cast<const char*>(shared + full.next()));
    if (more) store(refilled);
  }
}

}  // namespace vggfast::cuda
