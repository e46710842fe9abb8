// Block 1 of a VGG for inference: y (n, h/2, w/2, 64) = 2x2 max-pool(relu(conv(a, w2) + b2)), where a (n, h, w, 64) =
// relu(conv(x, w1) + b1) of x (n, h, w, c <= 4) is in shared memory alone. NHWC; 3 x 3, pad 1.
// A block takes tile after tile of 8 x 28 pixels. Shared memory (tile.h), 211 KB, or 214 with four channels: w2 (72),
// two output stages (16), a ring of three boxes of a (113), two buffers for x (10, or 13). Warpgroup 0 loads w2 once,
// then waits for a box to be empty and fills it (producer.h). Warpgroups 1 and 2 take tiles in turns: they wait for w2
// and a box, multiply (mainloop.h), release the box, then pool and store (epilogue.h) under the other's products.
// Estimated: a tile takes the tensor cores 9 * 4 * 112 clocks, and 19 * 16 * 2 more for a where mma.sync has half of
// wgmma's rate, 4640 in all; and shared memory 3200, as the simulator counts bytes.
#pragma once

#include "cuda/conv/sm90/block1/producer.h"
#include "cuda/conv/sm90/core/mainloop.h"
#include "cuda/conv/sm90/epilogue/epilogue.h"
#include "cuda/ptx/elect.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/setmaxnreg.h"

namespace vggfast::cuda::sm90 {

// setmaxnreg: 128 * 152 + 256 * 176 = 64512. The first layer's threads hold its weights
// in registers beside sums and addresses, which takes more than the 40 of fprop's producer.
constexpr unsigned first_layer_registers = 152, second_layer_registers = 176;

template <class T>
struct Block1Args {
  Source<T> x;
  WeightView<T> first_weights;
  const T* first_bias;  // or null
  Schedule schedule;
  Output<T, T> y;
  bool fixed_weights;  // Context's
};

template <class Tile, class T>
__global__ void __launch_bounds__(threads, 1)
    conv_block1_kernel(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap y,
                       const __grid_constant__ Block1Args<T> a) {
  char* const shared = ptx::shared_memory();
  auto& pixel_barriers = *reinterpret_cast<Barriers<Tile::pixel_stages>*>(shared + Tile::barriers_at);
  auto& weight_barriers = *reinterpret_cast<Barriers<Tile::weight_stages>*>(&pixel_barriers + 1);
  const int warp = static_cast<int>(ptx::shfl(threadIdx.x / 32, 0));  // which the compiler then knows to be uniform
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(weights);
    ptx::prefetch_tensormap(y);
    pixel_barriers.init(warpgroup_warps, warpgroup_warps);
    weight_barriers.init(warpgroup_warps);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  const int warpgroup = warp / warpgroup_warps;
  if (warpgroup > 0 || !a.fixed_weights) ptx::griddepcontrol_wait();
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  constexpr KRange k{0, 1, 3};
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<first_layer_registers>();
    if (warp == 0 && ptx::elect()) {
      feed_weights<Tile, T, T>(shared + Tile::weights_at, weight_barriers, weights, a.schedule, k, 0, first, step);
    }
    ptx::sync_warp();
    FirstLayer<Tile, T> layer(shared, a.x, a.first_weights, a.first_bias);
    ptx::griddepcontrol_wait();
    compute_boxes(shared, pixel_barriers, a.schedule, layer);
    ptx::griddepcontrol_launch_dependents();
  } else {
    ptx::setmaxnreg_inc<second_layer_registers>();
    const int consumer = warpgroup - 1;
    Consumer<Tile, T> multiplier(shared, pixel_barriers, weight_barriers, k, consumer);
    Epilogue<Tile, T, T> epilogue(shared + Tile::staging_at + consumer * Tile::staging_bytes, y, a.y, consumer);
    Sums<Tile> sums;
    for (int group = first + consumer * step; group < a.schedule.groups; group += consumers * step) {
      multiplier.multiply_tile(sums, group > first, group + step < a.schedule.groups);
      epilogue.store(sums, a.schedule.template place<Tile>(group, InCluster<Tile>()));
    }
    epilogue.finish();
  }
}

}  // namespace vggfast::cuda::sm90
