// Adds up the sums of a tile whose input channels the blocks of a cluster divide among them (Tile::split). Each block
// writes all its sums to its own shared memory, then reads a part of every block's, always in the order of ranks, so
// that results are the same bits every time. `full` completes when all warps of all blocks have written; `empty`, for
// which the next tile waits, when all have read.
#pragma once

#include "cuda/conv/sm90/core/schedule.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda::sm90 {

template <class Tile>
class ClusterReduce {
  static constexpr int groups = Tile::pixels / 8, part_groups = groups / Tile::split;

 public:
  __device__ __forceinline__ ClusterReduce(char* shared, Barriers<1>& barriers, int consumer)
      : mine_(reinterpret_cast<Quad*>(shared) + consumer * groups * warpgroup_threads +
              threadIdx.x % warpgroup_threads),
        barriers_(barriers) {}

  /// part: the sums over all blocks, of groups of eight pixels from rank * part_groups on.
  __device__ __forceinline__ void sum(const float (&sums)[4 * groups], float (&part)[4 * part_groups], int rank) {
    at_.template wait_empty<Scope::cluster>(barriers_);
#pragma unroll
    for (int i = 0; i < groups; ++i) {
      mine_[i * warpgroup_threads] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    }
    ptx::sync_warp();
    arrive<Tile::split, Scope::cluster>(&barriers_.full[0], 0, 1);
    at_.template wait_full<Scope::cluster>(barriers_);
    Quad total[part_groups] = {};
    for (int from = 0; from < Tile::split; ++from) {
      const Quad* const theirs = ptx::mapa(mine_, static_cast<uint32_t>(from)) + rank * part_groups * warpgroup_threads;
#pragma unroll
      for (int i = 0; i < part_groups; ++i) total[i].add(theirs[i * warpgroup_threads]);
    }
    ptx::sync_warp();
    arrive<Tile::split, Scope::cluster>(&barriers_.empty[0], 0, 1);
    at_.advance();
#pragma unroll
    for (int i = 0; i < 4 * part_groups; ++i) part[i] = total[i / 4].value[i % 4];
  }

 private:
  struct alignas(16) Quad {  // a thread's sums of eight pixels
    float value[4];

    __device__ __forceinline__ void add(const Quad& other) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] += other.value[i];
    }
  };

  Quad* const mine_;
  Barriers<1>& barriers_;
  PipelineState<1> at_;
};

}  // namespace vggfast::cuda::sm90
