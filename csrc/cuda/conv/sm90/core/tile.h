// Tiles of the Hopper fprop, and what they take of shared memory. Output channels lie on M, pixels on N.
//
//   rows   8 x Rows pixels of an image. Three boxes of 8 x (Rows + 2) pixels, shifted by a column each, serve the nine
//          taps: the taps of a column start a row of pixels (1024 bytes) apart. The four pixels of a pool's window are
//          in one thread. 3x3 only.
//   flat   pixels in a row through all images, a box for each tap by im2col. A pool's windows meet in the stage for
//          outputs (flat_pool.h), where it holds whole pairs of rows.
//
// Two warpgroups either share a tile of 128 channels, or take tiles of 64 in turns, one's epilogue under the other's
// products. Blocks of a cluster share what they load: Down of them the pixels, Across of them the weights; or Split of
// them share the input channels of one tile, and each ends with the sums of a part of its pixels
// (fprop/cluster_reduce.h).
#pragma once

#include <algorithm>

#include "cuda/conv/sm90/core/operand.h"
#include "cuda/conv/sm90/core/pipeline.h"

namespace vggfast::cuda::hopper {

enum class Feed { rows, flat };
enum class Work { shared, turns };
enum class Weights { streamed, resident };  // resident: a block keeps all taps of one row of channels, loaded once

constexpr int tile_width = 8;           // of a tile fed by rows
constexpr int warpgroup_channels = 64;  // M of a product
constexpr int consumers = 2;            // warpgroups that multiply
constexpr int threads = (1 + consumers) * warpgroup_threads;
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
  static constexpr bool turns = Sharing == Work::turns, resident = Kept == Weights::resident;
  static constexpr bool by_rows = How == Feed::rows;
  static constexpr int channels = turns ? warpgroup_channels : consumers * warpgroup_channels;
  static constexpr bool only_pools = false;  // whether outputs are pooled always, and masks never asked for
  static constexpr int taps_of_a_box = by_rows ? 3 : 1;
  static constexpr int box_rows = by_rows ? rows + taps_of_a_box - 1 : 1;  // of pixels
  static constexpr int box_pixels = by_rows ? tile_width * box_rows : pixels;
  static constexpr int out_pixels = pixels / split, out_rows = rows / split;  // that a block stores
  static constexpr int staged_pixels =
      pixels > (by_rows ? 224 : 192) ? pixels / 2 : out_pixels;  // that leave at a time

  static constexpr int weight_bytes = channels * row_bytes, pixel_bytes = box_pixels * row_bytes;  // of a stage
  static constexpr int staging_bytes = staged_pixels * row_bytes;                                  // of a warpgroup
  static constexpr int budget = (227 << 10) - 1024;  // the last KiB is the barriers'
  static constexpr int exchange_bytes = split > 1 ? channels * pixels * static_cast<int>(sizeof(float)) : 0;
  static constexpr int free_bytes = budget - consumers * staging_bytes - exchange_bytes;
  static constexpr int pixel_stages = by_rows ? 3 : std::min(6, free_bytes / (weight_bytes + pixel_bytes));
  static constexpr int weight_stages = resident  ? 9
                                       : by_rows ? std::min(9, (free_bytes - pixel_stages * pixel_bytes) / weight_bytes)
                                                 : pixel_stages;

  static constexpr int pixels_at = 0, weights_at = pixel_stages * pixel_bytes;
  static constexpr int staging_at = weights_at + weight_stages * weight_bytes;
  static constexpr int exchange_at = staging_at + consumers * staging_bytes;
  static constexpr int barriers_at = exchange_at + exchange_bytes;
  static constexpr int shared_bytes =
      barriers_at +
      static_cast<int>(sizeof(Barriers<pixel_stages>) + sizeof(Barriers<weight_stages>) + sizeof(Barriers<1>));

  /// How many boxes have a chunk of channels for all taps, and the tap, row-major, that is number `i` of a box: fed by
  /// rows, a box is a column of them.
  __host__ __device__ __forceinline__ static constexpr int boxes(int kernel) { return by_rows ? 3 : kernel * kernel; }
  __host__ __device__ __forceinline__ static constexpr int tap(int box, int i) { return by_rows ? 3 * i + box : box; }
  /// From a box's first pixel to the first that its tap `i` reads, and from a product's channels to the next one's.
  __host__ __device__ __forceinline__ static constexpr int tap_bytes(int i) { return i * group_bytes; }
  static constexpr int pixels_step = product_bytes;
  __device__ __forceinline__ static uint64_t pixels_descriptor(const void* box) { return row_descriptor(box); }

  static_assert(pixels % 16 == 0 && pixels <= 256 && (!by_rows || rows % 2 == 0));
  static_assert(weight_stages >= 2 && shared_bytes <= budget + 1024);
  static_assert(box_pixels / down * row_bytes % group_bytes == 0 && channels % (across * group_rows) == 0);
  static_assert(!resident || (turns && cluster == 1));
  static_assert(split == 1 || (!turns && pixels / 8 % split == 0 && (!by_rows || out_rows % 2 == 0)));
};

}  // namespace vggfast::cuda::hopper
