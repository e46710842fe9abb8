// The first layer's fprop: y (n, h, w, cout) = epilogue(3 x 3 taps of x (n, h, w, c <= 4) * weights), bound by storing
// y.
//
// A persistent block owns 128 bytes of y's channels; their weights stay in registers (lane.h). It walks over tiles of
// 12 x 32 pixels: a tile of x and its border come to shared memory (halo.h), and each lane reads the words of its
// pixels' patches from there (patch.h). Shared memory: two buffers of 6 KB, or 8 with four channels. Who waits on whom:
// while a tile is multiplied, the next tile's values are loaded to registers; then they go to the other buffer, and all
// threads meet at a barrier.
#pragma once

#include "cuda/conv/stem/lane.h"
#include "cuda/divider.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {

template <class T, int Channels>
struct StemFprop {
  static constexpr int warps = 6, threads = 32 * warps;
  static constexpr int least_blocks = Channels == 3 ? 2 : 1;
  static constexpr int tile_rows = 2 * warps, tile_columns = 32;  // a warp has a row of windows, eight at a time
  using Border = HaloShape<T, Channels, tile_rows + 2, tile_columns + 2, warps>;
  static constexpr int group = 128 / static_cast<int>(sizeof(T));  // channels of a block
  static constexpr int blocks_of_32 = group / 32;
  static constexpr int shared_bytes = 2 * Border::bytes;
  using InLane = StemLane<T, Channels, Border, blocks_of_32>;
};

template <class T>
struct StemFpropArgs {
  Source<T> x;
  WeightView<T> weights;
  Output<T> y;
  Divider tiles_across, tiles_down;
  int tiles, groups;
  bool fixed_weights;  // Context's
};

/// Eight windows of a warp, of which this lane's lies at `window`, and its right column `right` bytes further: all
/// their products and outputs.
template <class Traits, class T>
__device__ __forceinline__ void compute_windows(const typename Traits::InLane& lane, const char* window, int right,
                                                int channels, const WindowOutputs<T>& outputs) {
  uint32_t pixels[2][Traits::InLane::Patch::steps][4];
#pragma unroll
  for (int down = 0; down < 2; ++down) {
    const char* const first = window + down * Traits::Border::row_values * sizeof(T);
    lane.load(first, first + right, pixels[down]);
  }
#pragma unroll
  for (int block = 0; block < Traits::blocks_of_32; ++block) {
    WindowSums sums;
#pragma unroll
    for (int down = 0; down < 2; ++down) lane.multiply(pixels[down], block, sums[2 * down], sums[2 * down + 1]);
    if (32 * block < channels) outputs.store(sums, 32 * block);
  }
}

template <class T, int Channels>
__global__ void __launch_bounds__(StemFprop<T, Channels>::threads, StemFprop<T, Channels>::least_blocks)
    stem_fprop_kernel(const StemFpropArgs<T> a) {
  using Traits = StemFprop<T, Channels>;
  using Border = typename Traits::Border;
  char* const shared = ptx::shared_memory();
  const int first_channel = static_cast<int>(blockIdx.x) % a.groups * Traits::group;
  const int step = static_cast<int>(gridDim.x) / a.groups, warp = static_cast<int>(threadIdx.x) / 32;
  int tile = static_cast<int>(blockIdx.x) / a.groups;
  if (!a.fixed_weights) ptx::griddepcontrol_wait();
  const typename Traits::InLane lane(a.weights, a.y.bias, first_channel);
  ptx::griddepcontrol_wait();
  const int right = Border::offset(0, a.x.c);  // from a pixel of an even column
  const int channel = first_channel + lane.at.within * lane_channels;
  Halo<T, Border> halo;
  TilePlace place = TilePlace::of<Traits::tile_rows, Traits::tile_columns>(a.tiles_across, a.tiles_down, tile);
  halo.fetch(a.x, place.image, place.y - 1, place.x - 1);
  halo.store(shared);
  ptx::sync_threads();
#pragma unroll 1
  for (int buffer = 0; tile < a.tiles; buffer ^= 1) {
    const TilePlace now = place;
    tile += step;
    place = TilePlace::of<Traits::tile_rows, Traits::tile_columns>(a.tiles_across, a.tiles_down, tile);
    if (tile < a.tiles) {
      halo.fetch(a.x, place.image, place.y - 1, place.x - 1);
    } else {
      ptx::griddepcontrol_launch_dependents();
    }
    const char* const row = shared + buffer * Border::bytes + 2 * warp * Border::row_values * sizeof(T);
    if (now.y + 2 * warp < a.y.h) {
#pragma unroll 1
      for (int x = 2 * lane.at.group; x < Traits::tile_columns; x += 16) {
        const WindowOutputs<T> outputs(a.y, now.image, now.y + 2 * warp, now.x + x, channel);
        compute_windows<Traits>(lane, row + x * a.x.c * sizeof(T), right, a.y.c - channel, outputs);
      }
    }
    if (tile < a.tiles) halo.store(shared + (buffer ^ 1) * Border::bytes);
    ptx::sync_threads();
  }
}

}  // namespace vggfast::cuda
