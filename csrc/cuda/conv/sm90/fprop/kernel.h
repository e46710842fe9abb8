// Convolution on Hopper as an implicit GEMM: fprop, and dgrad as fprop of the gradient with mirrored weights (pack.h).
//
//   D (64 channels x Tile::pixels, in registers) += weights (64 x 128 bytes) * pixels (128 bytes x Tile::pixels)
//
// for each tap and 128 bytes of input channels. x and y are NHWC, weights (cout, taps, cin). Both operands come from
// shared memory, swizzled (operand.h), with channels contiguous. Shared memory (tile.h): a ring of boxes of pixels, one
// or two of weights and two output stages, up to 227 KB, so one block to an SM. Warps 0 to 2 fill the rings (feed.h).
// Warpgroups 1 and 2 wait for full stages and multiply (mainloop.h), then store (epilogue.h) while the rings fill for
// the next tile. The grid is persistent: a block takes tile after tile. Only the warps that load weights, where they
// are fixed, do not wait for the kernels before this one.
#pragma once

#include "cuda/conv/sm90/core/mainloop.h"
#include "cuda/conv/sm90/epilogue/epilogue.h"
#include "cuda/conv/sm90/fprop/cluster_reduce.h"
#include "cuda/ptx/elect.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda::sm90 {

template <class T, class U>
struct FpropArgs {
  Schedule schedule;
  KRange k;
  Output<T, U> y;
  bool fixed_weights;  // Context's
};

/// After the fence behind the init of the mbarriers, all that other blocks are to see.
template <class Tile>
__device__ __forceinline__ void begin_together() {
  if constexpr (Tile::cluster > 1) {
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait();
  } else {
    ptx::sync_threads();
  }
}

template <class Tile, class T, class U>
__global__ void __launch_bounds__(threads, 1)
    conv_fprop_hopper_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
                             const __grid_constant__ TensorMap y, const FpropArgs<T, U> a) {
  constexpr int weights_warp = 1;  // and the next one, where there are two rings
  char* const shared = ptx::shared_memory();
  auto& pixel_barriers = *reinterpret_cast<Barriers<Tile::pixel_stages>*>(shared + Tile::barriers_at);
  auto* const weight_barriers = reinterpret_cast<Barriers<Tile::weight_stages>*>(&pixel_barriers + 1);
  auto& reduce_barriers = *reinterpret_cast<Barriers<1>*>(weight_barriers + Tile::weight_rings);
  const int warp = static_cast<int>(ptx::shfl(threadIdx.x / 32, 0));  // which the compiler then knows to be uniform
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(x);
    ptx::prefetch_tensormap(weights);
    ptx::prefetch_tensormap(y);
    constexpr unsigned readers = Tile::weight_rings * warpgroup_warps;
    pixel_barriers.init(readers * Tile::down);
    for (int ring = 0; ring < Tile::weight_rings; ++ring) weight_barriers[ring].init(warpgroup_warps * Tile::across);
    reduce_barriers.init(readers * Tile::split, readers * Tile::split);
    ptx::fence_mbarrier_init();
  }
  begin_together<Tile>();
  const InCluster<Tile> in;
  const KRange k = a.k.template part<Tile>(in.split);
  const int warpgroup = warp / warpgroup_warps;
  const int ring = warp - weights_warp;  // of weights, which the warp fills, if there is one of that number
  const bool feeds_weights = ring >= 0 && ring < Tile::weight_rings;
  if (!feeds_weights || !a.fixed_weights) ptx::griddepcontrol_wait();
  const int first = static_cast<int>(blockIdx.x) / Tile::cluster, step = static_cast<int>(gridDim.x) / Tile::cluster;
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<producer_registers>();
    if (warp == 0 && ptx::elect()) {
      feed_pixels<Tile, T>(shared + Tile::pixels_at, pixel_barriers, x, a.schedule, k, first, step);
      ptx::griddepcontrol_launch_dependents();
    } else if (feeds_weights && ptx::elect()) {
      feed_weights<Tile, T, U>(shared + Tile::weights_at + ring * Tile::weight_stages * Tile::weight_bytes,
                               weight_barriers[ring], weights, a.schedule, k, ring, first, step);
    }
    ptx::sync_warp();
  } else {
    ptx::setmaxnreg_inc<consumer_registers>();
    const int consumer = warpgroup - 1;
    Consumer<Tile, T> multiplier(shared, pixel_barriers, weight_barriers[Tile::pingpong ? 0 : consumer], k, consumer);
    ClusterReduce<Tile> cluster_reduce(shared + Tile::reduce_at, reduce_barriers, consumer);
    Epilogue<Tile, T, U> epilogue(shared + Tile::staging_at + consumer * Tile::staging_bytes, y, a.y, consumer);
    Sums<Tile> sums;
    const int first_turn = Tile::pingpong ? consumer : 0, turns = Tile::pingpong ? consumers : 1;
    for (int group = first + first_turn * step; group < a.schedule.groups; group += turns * step) {
      multiplier.multiply_tile(sums, group > first, group + step < a.schedule.groups);
      const Place place = a.schedule.template place<Tile>(group, in);
      if constexpr (Tile::split > 1) {
        float part[Tile::out_pixels / 2];
        cluster_reduce.sum(sums, part, in.split);
        epilogue.store(part, place.after(in.split * Tile::out_rows, in.split * Tile::out_pixels));
      } else {
        epilogue.store(sums, place);
      }
    }
    epilogue.finish();
  }
  if constexpr (Tile::split > 1) {  // no block may end while others read its sums
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
}

}  // namespace vggfast::cuda::sm90
