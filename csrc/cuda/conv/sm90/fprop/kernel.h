// Convolution on Hopper as an implicit GEMM: fprop, and dgrad as fprop of the gradient with mirrored weights (pack.h).
//
//   D (64 channels x Tile::pixels, in registers) += weights (64 x 128 bytes) * pixels (128 bytes x Tile::pixels)
//
// for each tap and 128 bytes of input channels; both operands in shared memory, swizzled, with channels contiguous.
// Shared memory (tile.h): a ring of boxes of pixels, a ring of weights, two stages for outputs; up to 227 KB, one block
// to a multiprocessor. Warps 0 and 1 feed the rings (feed.h); warpgroups 1 and 2 wait for them and multiply
// (mainloop.h), then store (epilogue.h) while the rings fill for the next tile. Blocks stay until all tiles are done.
#pragma once

#include "cuda/conv/sm90/core/mainloop.h"
#include "cuda/conv/sm90/epilogue/epilogue.h"
#include "cuda/conv/sm90/fprop/cluster_reduce.h"
#include "cuda/ptx/elect.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda::hopper {

template <class T, class U>
struct FpropArgs {
  Schedule schedule;
  Depth depth;
  Output<T, U> y;
};

template <class Tile>
__device__ __forceinline__ void sync_cluster() {
  if constexpr (Tile::cluster > 1) {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  } else {
    ptx::sync_threads();
  }
}

template <class Tile, class T, class U>
__global__ void __launch_bounds__(threads, 1)
    conv_fprop_hopper_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
                             const __grid_constant__ TensorMap y, const FpropArgs<T, U> a) {
  constexpr unsigned readers = (Tile::turns ? 1 : consumers) * warpgroup_warps;
  char* const shared = ptx::shared_memory();
  auto& pixel_barriers = *reinterpret_cast<Barriers<Tile::pixel_stages>*>(shared + Tile::barriers_at);
  auto& weight_barriers = *reinterpret_cast<Barriers<Tile::weight_stages>*>(&pixel_barriers + 1);
  auto& exchange_barriers = *reinterpret_cast<Barriers<1>*>(&weight_barriers + 1);
  if (threadIdx.x == 0) {
    pixel_barriers.init(readers * Tile::down);
    weight_barriers.init(readers * Tile::across);
    exchange_barriers.init(readers * Tile::split, readers * Tile::split);
    ptx::fence_mbarrier_init();
  }
  sync_cluster<Tile>();
  const InCluster<Tile> in;
  const Depth depth = a.depth.template part<Tile>(in.split);
  const int warp = static_cast<int>(threadIdx.x) / 32, warpgroup = warp / warpgroup_warps;
  const int first = static_cast<int>(blockIdx.x) / Tile::cluster, step = static_cast<int>(gridDim.x) / Tile::cluster;
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<producer_registers>();
    if (warp == 0 && ptx::elect()) {
      feed_pixels<Tile, T>(shared + Tile::pixels_at, pixel_barriers, x, a.schedule, depth, first, step);
    } else if (warp == 1 && ptx::elect()) {
      feed_weights<Tile, T, U>(shared + Tile::weights_at, weight_barriers, weights, a.schedule, depth, first, step);
    }
    ptx::sync_warp();
  } else {
    ptx::setmaxnreg_inc<consumer_registers>();
    const int consumer = warpgroup - 1;
    Consumer<Tile, T> multiplier(shared, pixel_barriers, weight_barriers, depth, consumer);
    Exchange<Tile> exchange(shared + Tile::exchange_at, exchange_barriers, consumer);
    Epilogue<Tile, T, U> epilogue(shared + Tile::staging_at + consumer * Tile::staging_bytes, y, a.y, consumer);
    Sums<Tile> sums;
    const int turn = Tile::turns ? consumer : 0, turns = Tile::turns ? consumers : 1;
    for (int group = first + turn * step; group < a.schedule.groups; group += turns * step) {
      multiplier.multiply_tile(sums, group > first, group + step < a.schedule.groups);
      const Place place = a.schedule.template place<Tile>(group, in);
      if constexpr (Tile::split > 1) {
        float part[Tile::out_pixels / 2];
        exchange.sum(sums, part, in.split);
        epilogue.store(part, place.after(in.split * Tile::out_rows, in.split * Tile::out_pixels));
      } else {
        epilogue.store(sums, place);
      }
    }
    epilogue.finish();
  }
  if constexpr (Tile::cluster > 1) sync_cluster<Tile>();  // nobody leaves while others arrive at its barriers
}

}  // namespace vggfast::cuda::hopper
