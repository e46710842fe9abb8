// Tiles of the Hopper fprop, and what they take of shared memory. Output channels lie on M, pixels on N.
//
//   halo     The tile is 8 x Rows pixels of one image. Three boxes of 8 x (Rows + 2) pixels, each shifted by a column,
//            serve the nine taps: the taps of a column start one row of pixels (1024 bytes) apart. One thread holds the
//            four pixels of a pool's window. For 3x3 kernels only.
//   im2col   The tile is consecutive pixels, which may cross rows and images, with one im2col box for each tap. The
//            pixels of a pool's window meet in the output stage (staged_pool.h), which then holds whole pairs of rows.
//
// The two consumer warpgroups either cooperate on one tile of 128 channels, or take tiles of 64 channels in turns
// (ping-pong). Either way the epilogue of one runs under the products of the other: of those who cooperate, the second
// follows the first at a distance of `lag` boxes, each with a ring of weights of its own. The blocks of a cluster share
// their loads: Down of them read the same pixels, Across of them the same weights. Or Split blocks divide the input
// channels of one tile among them, and each ends with the sums of a part of its pixels (fprop/cluster_reduce.h).
//
// Shared memory of a block, in this order, of at most 227 KB; the stages begin at multiples of 1024 bytes:
//
//   pixel_stages  x pixel_bytes     boxes of pixels, 128 bytes of channels each
//   weight_stages x weight_bytes    one tap's weights for 64 output channels, 128 bytes of input channels each; this
//                                   weight_rings times
//   consumers     x staging_bytes   the outputs that are on their way to memory
//   reduce_bytes                    float32 sums that other blocks of the cluster read; only where Split > 1
//   barriers                        full and empty of each ring
#pragma once

#include <algorithm>

#include "cuda/conv/sm90/core/operand.h"
#include "cuda/conv/sm90/core/pipeline.h"

namespace vggfast::cuda::sm90 {

enum class Feed { halo, im2col };
enum class Work { cooperative, pingpong };
enum class Weights { streamed, stationary };  // stationary: a block loads all taps of one row of channels once

constexpr int tile_width = 8;           // of a halo tile
constexpr int warpgroup_channels = 64;  // M of a product
constexpr int consumers = 2;            // warpgroups that multiply
constexpr int threads = (1 + consumers) * warpgroup_threads;
// setmaxnreg: 128 * 40 + 256 * 232 = 64512, which is what 384 threads of 168 registers have at launch. A consumer
// holds up to 128 sums beside its addresses; a producer holds addresses alone. Not measured on a GPU.
constexpr unsigned producer_registers = 40, consumer_registers = 232;

template <int Down = 1, int Across = 1, int Split = 1>
struct Cluster {
  static constexpr int down = Down, across = Across, split = Split, blocks = Down * Across * Split;
  static_assert(Split == 1 || Down * Across == 1);
};

template <Feed How, int Pixels, Work Sharing, Weights Kept = Weights::streamed, class Blocks = Cluster<>>
struct Tile {
  static constexpr int down = Blocks::down, across = Blocks::across, split = Blocks::split, cluster = Blocks::blocks;
  static constexpr int pixels = Pixels, rows = Pixels / tile_width;
  static constexpr bool pingpong = Sharing == Work::pingpong, stationary = Kept == Weights::stationary;
  static constexpr bool halo = How == Feed::halo;
  static constexpr int channels = pingpong ? warpgroup_channels : consumers * warpgroup_channels;
  static constexpr bool only_pools = false;  // whether outputs are pooled always, and masks never asked for
  static constexpr int taps_of_a_box = halo ? 3 : 1;
  static constexpr int box_rows = halo ? rows + taps_of_a_box - 1 : 1;  // of pixels
  static constexpr int box_pixels = halo ? tile_width * box_rows : pixels;
  static constexpr int out_pixels = pixels / split, out_rows = rows / split;                   // that a block stores
  static constexpr int staged_pixels = pixels > (halo ? 224 : 192) ? pixels / 2 : out_pixels;  // that leave at a time

  static constexpr int weight_rings = pingpong ? 1 : consumers;
  static constexpr int weight_bytes = warpgroup_channels * row_bytes;  // of a stage
  static constexpr int pixel_bytes = box_pixels * row_bytes;           // of a stage
  static constexpr int staging_bytes = staged_pixels * row_bytes;      // of a warpgroup
  static constexpr int budget = (227 << 10) - 1024;                    // the last KiB is the barriers'
  static constexpr int reduce_bytes = split > 1 ? channels * pixels * static_cast<int>(sizeof(float)) : 0;
  static constexpr int free_bytes = budget - consumers * staging_bytes - reduce_bytes;
  static constexpr int taps_bytes = weight_rings * weight_bytes;  // one tap's weights for all channels
  static constexpr int pixel_stages = halo ? 3 : std::min(6, free_bytes / (taps_bytes + pixel_bytes));
  static constexpr int weight_stages = stationary ? 9
                                       : halo     ? std::min(9, (free_bytes - pixel_stages * pixel_bytes) / taps_bytes)
                                                  : pixel_stages;
  // The boxes by which the second warpgroup follows the first. The ring of pixels must hold them and one more. Blocks
  // that add up a tile's sums do so together.
  static constexpr int lag = pingpong || split > 1 ? 0 : pixel_stages - 1;

  static constexpr int pixels_at = 0, weights_at = pixel_stages * pixel_bytes;
  static constexpr int staging_at = weights_at + weight_rings * weight_stages * weight_bytes;
  static constexpr int reduce_at = staging_at + consumers * staging_bytes;
  static constexpr int barriers_at = reduce_at + reduce_bytes;
  static constexpr int shared_bytes =
      barriers_at + static_cast<int>(sizeof(Barriers<pixel_stages>) + weight_rings * sizeof(Barriers<weight_stages>) +
                                     sizeof(Barriers<1>));

  /// How many boxes a chunk of channels takes for all taps; and the tap, row-major, that is number `i` of a box: the
  /// box of a halo tile serves a column of taps.
  __host__ __device__ __forceinline__ static constexpr int boxes(int kernel) { return halo ? 3 : kernel * kernel; }
  __host__ __device__ __forceinline__ static constexpr int tap(int box, int i) { return halo ? 3 * i + box : box; }
  /// Bytes from a box's first pixel to the first that its tap `i` reads; and from a product's channels to the next's.
  __host__ __device__ __forceinline__ static constexpr int tap_bytes(int i) { return i * group_bytes; }
  static constexpr int pixels_step = product_bytes;
  __device__ __forceinline__ static uint64_t pixels_descriptor(const void* box) { return row_descriptor(box); }

  static_assert(pixels % 16 == 0 && pixels <= 256 && (!halo || rows % 2 == 0));
  static_assert(weight_stages >= 2 && shared_bytes <= budget + 1024);
  static_assert(box_pixels / down * row_bytes % group_bytes == 0 && warpgroup_channels % (across * 16) == 0);
  static_assert(!stationary || (pingpong && cluster == 1));
  static_assert(split == 1 || (!pingpong && pixels / 8 % split == 0 && (!halo || out_rows % 2 == 0)));
};

}  // namespace vggfast::cuda::sm90
