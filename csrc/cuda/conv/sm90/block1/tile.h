// The tile of block 1's fused kernel (kernel.h), and what it takes of shared memory: the second convolution's, which
// Consumer, Epilogue and feed_weights see as one of Tile's (core/tile.h), and of the first its values on 10 x 30
// pixels.
//
// One box serves all nine taps. Threads write it, not TMA, so it may lie as wgmma reads without a swizzle: for each
// eight channels a plane, which has 16 bytes of each pixel, row by row. A core matrix is eight pixels in a row:
//
//   plane c / 8:   pixel 0 | pixel 1 | ... | pixel 9    16 bytes each; row 0 of the box
//                  pixel 10 | ...                       row 1: 160 bytes on, the stride from one core matrix to the
//                  next
//
// Eight pixels in a row are 128 bytes wherever they begin, so a tap is just another first pixel.
#pragma once

#include "cuda/conv/sm90/core/tile.h"
#include "cuda/conv/stem/lane.h"

namespace vggfast::cuda::sm90 {

/// Of T with up to `Channels` channels of input.
template <class T, int Channels>
struct Block1Tile {
  static constexpr int down = 1, across = 1, split = 1, cluster = 1;
  static constexpr bool pingpong = true, stationary = true, halo = true, only_pools = true;
  static constexpr int rows = 28, pixels = tile_width * rows, out_rows = rows, out_pixels = pixels;
  static constexpr int channels = warpgroup_channels, weight_rings = 1, lag = 0;
  static constexpr int staged_pixels = 64;  // a quarter of them, in whole pairs of groups

  static constexpr int taps_of_a_box = 9, weight_stages = 9, pixel_stages = 3;
  static constexpr int box_rows = rows + 2, box_columns = tile_width + 2, box_pixels = box_rows * box_columns;
  static constexpr int planes = channels_of<T> * static_cast<int>(sizeof(T)) / chunk_bytes;
  // Four planes' chunks of two pixels, which eight lanes write at a time, are to fall into different banks.
  static constexpr int plane_bytes = (box_pixels + 2) * chunk_bytes;
  static_assert(plane_bytes % 128 == 96);

  /// As Tile's, and the order of a box's taps is that of the three boxes of a halo tile: the sums are the same bits.
  __host__ __device__ __forceinline__ static constexpr int boxes(int) { return 1; }
  __host__ __device__ __forceinline__ static constexpr int tap(int, int i) { return 3 * (i % 3) + i / 3; }
  __host__ __device__ __forceinline__ static constexpr int tap_bytes(int i) {
    return (i % 3 * box_columns + i / 3) * chunk_bytes;
  }
  static constexpr int pixels_step = product_bytes / chunk_bytes * plane_bytes;
  __device__ __forceinline__ static uint64_t pixels_descriptor(const void* box) {
    return ptx::wgmma_descriptor(box, ptx::Swizzle::none, plane_bytes, box_columns * chunk_bytes);
  }

  using Border = HaloShape<T, Channels, box_rows + 2, box_columns + 2, warpgroup_warps>;
  using Lane = StemLane<T, Channels, Border, warpgroup_channels / 32>;

  static constexpr int weight_bytes = channels * row_bytes, pixel_bytes = planes * plane_bytes;  // of a stage
  static constexpr int staging_bytes = staged_pixels * row_bytes;                                // of a warpgroup
  static constexpr int weights_at = 0, staging_at = weight_stages * weight_bytes;
  static constexpr int pixels_at = staging_at + consumers * staging_bytes;
  static constexpr int borders_at = pixels_at + pixel_stages * pixel_bytes;
  static constexpr int barriers_at = borders_at + 2 * Border::bytes;
  static constexpr int shared_bytes =
      barriers_at + static_cast<int>(sizeof(Barriers<pixel_stages>) + sizeof(Barriers<weight_stages>));
  static_assert(shared_bytes <= 227 << 10);
};

}  // namespace vggfast::cuda::sm90
